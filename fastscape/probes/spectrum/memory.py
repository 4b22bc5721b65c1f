"""How the products of a Krylov basis and the basis share the bytes that a call may take."""

from __future__ import annotations

import math

import torch

from fastscape.evaluation.footprint import Cap, footprint
from fastscape.objective.batches import available_memory
from fastscape.objective.objective import Objective

BESIDE = 4  # blocks beside the basis: products, what is orthogonal of them, and two on the way there
_GRAPHS = 3  # gradients that a product holds at least


def room_for_basis(objective: Objective, memory: int, rows: int, width: int) -> int:
    """Bytes for a basis of at least ``rows`` vectors and the blocks of ``width`` beside it; the rest is for products.

    Raises:
        ValueError: not even the least basis fits, with what is enough.
    """
    least, products = _needed(objective, rows, width)
    cap = Cap(memory)
    cap.hold(least + products, f"products and a basis of {rows} vectors (k= or block= lower it)")
    return int(min(max(memory / 2, least), memory - products))


def basis_fits(objective: Objective, memory: int | None, rows: int, width: int) -> bool:
    """Whether a basis of so many vectors has room beside products, or in its share of what is free."""
    if memory is None:
        return free_for_basis(objective.device) >= rows * _vector(objective)
    return sum(_needed(objective, rows, width)) <= Cap(memory).room()


def free_for_basis(device: torch.device) -> int:
    """Bytes that a basis may take where nothing was asked for."""
    return available_memory(device) // 4


def _vector(objective: Objective) -> int:
    return objective.size * _dtype(objective).itemsize


def _dtype(objective: Objective) -> torch.dtype:
    return torch.float64 if objective.dtype == torch.float64 else torch.float32


def _needed(objective: Objective, rows: int, width: int) -> tuple[int, float]:
    """Bytes of the least basis with the blocks beside it, and of products."""
    found, vector = footprint(objective, _dtype(objective)), _vector(objective)
    gradient = found.gradient if math.isfinite(found.gradient) else found.forward
    return (rows + BESIDE * width) * vector, 2 * found.copy + _GRAPHS * gradient + 2 * width * vector
