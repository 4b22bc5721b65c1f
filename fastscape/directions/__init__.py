"""Directions in parameter space: counter-based random ones, normalisations, given ones."""

from fastscape.directions.directions import Directions, checked_directions

__all__ = ["Directions", "checked_directions"]
