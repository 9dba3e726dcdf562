"""The models that the service runs."""
