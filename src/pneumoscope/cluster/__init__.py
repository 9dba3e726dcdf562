"""Predictions on many machines: with Ray, and in jobs of Spark."""

from pneumoscope.cluster.spark import predict_udf

__all__ = ["predict_udf"]
