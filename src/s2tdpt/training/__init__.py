"""Recipes, optimisers, schedules and the training engine."""
