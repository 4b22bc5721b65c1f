"""What every operation does to the lanes of its operands."""

from fastscape.evaluation.differences.rules import arithmetic, functions, indexing, losses, norms, products, selection, structure
from fastscape.evaluation.differences.rules.fallback import fallback
from fastscape.evaluation.differences.rules.table import COLLAPSED, DECISIVE, PIECEWISE, RULES, STRUCTURE, moves

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
