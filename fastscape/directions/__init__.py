"""Directions in parameter space: counter-based random ones, normalisations, given ones."""

from fastscape.directions.axes import Axes
from fastscape.directions.directions import Directions, checked_directions

__all__ = ["Axes", "Directions", "checked_directions"]
