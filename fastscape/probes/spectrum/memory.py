"""How the products of a Krylov basis and the basis share the bytes that a call may take."""

from __future__ import annotations

import math

import torch

from fastscape.evaluation.footprint import Cap, footprint
from fastscape.objective.objective import Objective

BESIDE = 4  # blocks beside the basis: products, what is orthogonal of them, and two on the way there
_GRAPHS = 3  # gradients that a product holds at least


def room_for_basis(objective: Objective, memory: int, rows: int, width: int) -> int:
    """Bytes for a basis of at least ``rows`` vectors and the blocks of ``width`` beside it; the rest is for products.

    Raises:
        ValueError: not even the least basis fits, with what is enough.
    """
    dtype = torch.float64 if objective.dtype == torch.float64 else torch.float32
    found, vector = footprint(objective, dtype), objective.size * torch.finfo(dtype).bits // 8
    gradient = found.gradient if math.isfinite(found.gradient) else found.forward
    least, products = (rows + BESIDE * width) * vector, 2 * found.copy + _GRAPHS * gradient + 2 * width * vector
    cap = Cap(memory)
    cap.hold(least + products, f"products and a basis of {rows} vectors (k= or block= lower it)")
    return int(min(max(memory / 2, least), memory - products))
