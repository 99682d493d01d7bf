"""Recipes, the Lightning module that trains with them, optimizers, checkpoints and curves."""
