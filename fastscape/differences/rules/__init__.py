"""Rules of every operation for the lanes of its operands."""

from fastscape.differences.rules import arithmetic, functions, indexing, losses, norms, products, selection, structure
from fastscape.differences.rules.fallback import fallback
from fastscape.differences.rules.table import COLLAPSED, DECISIVE, PIECEWISE, RULES, STRUCTURE, moves

__all__ = [
    "COLLAPSED",
    "DECISIVE",
    "PIECEWISE",
    "RULES",
    "STRUCTURE",
    "arithmetic",
    "fallback",
    "functions",
    "indexing",
    "losses",
    "moves",
    "norms",
    "products",
    "selection",
    "structure",
]
