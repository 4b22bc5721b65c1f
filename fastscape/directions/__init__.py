"""Directions in parameter space: counter-based random ones, normalisations, given ones."""

from fastscape.directions.directions import Directions

__all__ = ["Directions"]
