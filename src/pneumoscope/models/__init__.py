"""From arrays to logits: backbones, the classifier, and the model folder that holds it."""
