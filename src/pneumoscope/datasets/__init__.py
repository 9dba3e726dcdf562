"""Folders and tables become samples, samples become splits; simulated radiographs with known truth."""
