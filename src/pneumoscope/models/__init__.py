"""Arrays become logits: backbones, the classifier and the bundle it is kept in."""
