"""Bytes become arrays: reading, preparing and augmenting radiographs. NumPy and Pillow, no torch."""
