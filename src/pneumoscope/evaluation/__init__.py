"""Measures predictions: metrics with intervals, subgroups, curves and comparisons."""
