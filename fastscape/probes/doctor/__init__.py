"""Checks of a machine and a model before measuring."""
