"""From uploaded files to predictions."""
