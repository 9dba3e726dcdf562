"""Arrays become logits: backbones, the classifier and the model it is kept in."""
