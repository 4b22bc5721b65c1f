"""Losses on lines and grids of weights."""
