"""From bytes to arrays: reads, prepares and augments radiographs with NumPy and Pillow, without torch."""
