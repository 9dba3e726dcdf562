"""Files that are predicted later."""
