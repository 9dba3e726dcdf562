"""Samples become a model: recipes, the one loop and train()."""
