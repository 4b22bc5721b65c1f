"""Base of all ways to multiply with a curvature matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, get_args

from fastscape._checks import one_of
from fastscape.curvature.program import Parts

Matrix = Literal["hessian", "ggn"]
PathName = Literal["graph", "graph, batched", "forward", "replay", "reverse", "gradient difference", "channels-last"]
Product = Callable[[Parts], Parts]  # parts [K, *shape] of a block of vectors to those of their products


class ProductPath(Protocol):
    """A way to multiply the curvature matrix of one batch with a block of vectors.

    Attributes:
        name: for results and messages.
        batched: whether a block of K vectors is one computation; other paths are given one vector (K = 1) at a time.
        held: whether what :meth:`build` returns keeps activations and took work that later calls save.
        exact: whether products are exact up to rounding.
    """

    name: str
    batched: bool
    held: bool
    exact: bool

    def build(self, batch: int) -> Product:
        """Multiplication with the curvature matrix of one batch."""
        ...


def checked_path(path: object) -> PathName | None:
    """A path by name, or ``None``.

    Raises:
        ValueError: another name.
    """
    one_of("method", path, (*get_args(PathName), None), "to measure")
    return path  # type: ignore[return-value]
