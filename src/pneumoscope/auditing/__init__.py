"""Faults of a dataset, found before they spoil a result."""
