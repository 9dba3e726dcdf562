"""Samples become a bundle: recipes, the one loop and train()."""
