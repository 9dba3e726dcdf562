"""Predictions on many machines: with Ray, and in Spark jobs."""

from pneumoscope.cluster.spark import predict_udf

__all__ = ["predict_udf"]
