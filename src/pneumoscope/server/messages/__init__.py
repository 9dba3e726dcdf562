"""JSON of the API."""
