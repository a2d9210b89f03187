"""Recipes, the training loop and its inner maximisation."""
