"""Files become predictions: engines, cached features and the predictor."""
