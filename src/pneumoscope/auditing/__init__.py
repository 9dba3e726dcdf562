"""Finds problems of a dataset before they distort a result."""
