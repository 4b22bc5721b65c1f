"""Work with a curvature matrix on rank 0, for which the processes of a group multiply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from fastscape.curvature.operator import CurvatureOperator, ggn, hessian
from fastscape.curvature.paths import PathName
from fastscape.evaluation.group import Distributed, joined, uninterrupted
from fastscape.objective.objective import Objective, checked_objective

Found = TypeVar("Found")


class _Elsewhere(BaseException):
    """The block is rank 0's."""


class Absent:
    """What other ranks get for the operator of rank 0: any use of it ends their block."""

    def __getattr__(self, _name: str) -> Any:
        raise _Elsewhere


def _absent(*_arguments: object) -> Any:
    raise _Elsewhere


for _name in ("matmul", "add", "radd", "sub", "mul", "rmul", "truediv", "neg", "repr", "iter", "bool", "call"):
    setattr(Absent, f"__{_name}__", _absent)


def led(matrix: CurvatureOperator, work: Callable[[], Found]) -> Found:
    """What ``work`` makes or raises on rank 0, on all ranks; the others multiply meanwhile."""
    products = matrix.served
    assert products is not None
    if products.ranks.rank:
        with uninterrupted(drop=True):
            products.serve()
        return products.ranks.led()

    def ended() -> Found:
        try:
            return work()
        finally:
            with uninterrupted():
                products.stop()

    return products.ranks.led(ended)


@contextmanager
def serve(
    objective: Objective,
    *,
    operator: Literal["hessian", "ggn"] = "hessian",
    method: PathName | None = None,
    memory: int | None = None,
    distributed: Distributed = None,
) -> Iterator[CurvatureOperator]:
    """A block of rank 0 with the curvature matrix of an objective, for which all processes multiply.

    All enter it. On rank 0 the block runs as it would alone; on the others it ends where the operator is first used, once rank 0
    has left it, so that nothing in it needs to be the same on all. What rank 0 raises, all raise. Without several processes it
    is a plain block.

    Args:
        objective, method, memory, distributed: as for :func:`hessian`; ``distributed=True`` makes the process group from
            torchrun's environment where there is none, and ends it.
        operator: ``"hessian"`` or ``"ggn"``.

    Raises:
        ValueError: bad arguments, or ranks of another model, data, loss or version than rank 0's.
        RankError: a rank failed.

    Cost: as :func:`hessian`, divided by the processes; each product sends its vectors to all and 8 bytes for each of their
    elements from each, and takes the memory of a vector for each batch of a rank.

    Example:
        >>> import torch, fastscape as fs
        >>> objective = fs.Objective(torch.nn.Linear(4, 3), [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> with fs.serve(objective) as H:
        ...     image = H @ torch.ones(15)
        >>> image.shape
        torch.Size([15])
    """
    checked_objective(objective)
    if operator not in ("hessian", "ggn"):
        raise ValueError(f"operator must be 'hessian' or 'ggn', got {operator!r}")
    make = {"hessian": hessian, "ggn": ggn}[operator]
    with joined(distributed, objective) as ranks:
        matrix = make(objective, method=method, memory=memory, distributed=distributed if ranks is None else ranks.asked)
        if ranks is None:
            yield matrix
        elif ranks.rank:
            led(matrix, lambda: None)
            try:
                yield Absent()  # type: ignore[misc]
            except _Elsewhere:
                return
        else:
            yield from _first(matrix)


def _first(matrix: CurvatureOperator) -> Iterator[CurvatureOperator]:
    """Rank 0's block."""
    products = matrix.served
    assert products is not None
    failure: BaseException | None = None
    try:
        yield matrix
    except BaseException as error:
        failure = error
    with uninterrupted():
        products.stop()

    def ended() -> None:
        if failure is not None:
            raise failure

    products.ranks.led(ended)
