"""Predictions become numbers and pages: metrics, intervals and the report."""
