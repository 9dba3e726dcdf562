"""Training: from labelled images to a run with a model and its evaluation."""
