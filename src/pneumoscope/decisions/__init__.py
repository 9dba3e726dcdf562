"""From logits to decisions: what a model learned from its validation images."""
