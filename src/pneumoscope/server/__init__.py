"""The reading room and its HTTP service."""
