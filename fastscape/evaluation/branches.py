"""Piecewise smooth operations held on the pieces that they take at w, so that differences along a line see no kinks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastscape.evaluation.kinks import RULES, decides, guarded, rule_of
from fastscape.objective.structures import map_tensors, tensors_of


class BranchesChangedError(ValueError):
    """The forward takes other operations at other weights, so that no pieces can be held."""


class UnsupportedKinkError(ValueError):
    """An operation of values that depend on the weights has kinks and no rule that would hold its pieces."""


class Branches:
    """Pieces of every piecewise operation of a batch's forward: recorded once at w, then held.

    A ReLU becomes a product with its mask at w, max-pooling picks the elements that are largest at w, comparisons keep their
    outcome. Second differences of the forward then converge to the Hessian that automatic differentiation means, of which the
    plain ones are far at any step that rounding allows: 60 times the curvature for a ReLU network of 160 units on 128 random
    samples, where kinks between w - h d and w + h d outweigh it.

    An operation with kinks and without a rule in :mod:`fastscape.evaluation.kinks` is refused once its arguments move.

    Memory: a byte per element of each ReLU's output, eight per element of a max-pool's.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, list[tuple[str, Any]]] = {}

    def settled(self, loss: Callable[[Callable[[int], AbstractContextManager[None]]], float]) -> tuple[float, float]:
        """The loss as the pieces are recorded, and as they are held, of its evaluation in either mode.

        Recorded again where a first forward sets up what later ones keep, as detectors do with the scales of their features.
        """
        recorded = loss(self.recording)
        try:
            return recorded, loss(self.held)
        except BranchesChangedError:
            return loss(self.recording), loss(self.held)

    @contextmanager
    def recording(self, batch: int) -> Iterator[None]:
        """Record the pieces of the forward of a batch."""
        self._pieces[batch] = []
        with _Recording(self._pieces[batch]):
            yield

    @contextmanager
    def held(self, batch: int) -> Iterator[None]:
        """Evaluate the forward of a batch on the pieces recorded.

        Raises:
            BranchesChangedError: the operations differ from the recorded ones.
            UnsupportedKinkError: an operation with kinks and without a rule is given other values than at w.
        """
        pieces = self._pieces[batch]
        if not pieces:  # a smooth network pays nothing
            yield
            return
        mode = _Held(pieces)
        with mode:
            yield
        mode.check_end()


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, pieces: list[tuple[str, Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pieces = pieces

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = rule_of(func, args, kwargs)
        if rule is None:
            out = func(*args, **kwargs)
            if decides(func, args, kwargs, out):
                self._pieces.append((func._schema.name, map_tensors(out, Tensor.clone)))
            return out
        name, in_place = rule
        if name not in RULES:
            self._pieces.append((name, [tensor.clone() for tensor in guarded(name, args, kwargs)]))
            return func(*args, **kwargs)
        given = (args[0].clone(), *args[1:]) if in_place else args
        out = func(*args, **kwargs)
        self._pieces.append((name, _apart(RULES[name][0](given, kwargs, out), out)))
        return out


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, pieces: list[tuple[str, Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pieces, self._next = pieces, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = rule_of(func, args, kwargs)
        if rule is None and self._next < len(self._pieces) and self._pieces[self._next][0] == func._schema.name:
            self._next += 1
            return map_tensors(self._pieces[self._next - 1][1], Tensor.clone)
        if rule is None:
            return func(*args, **kwargs)
        name, in_place = rule
        recorded, pieces = self._pieces[self._next] if self._next < len(self._pieces) else ("the end of the forward", [])
        if recorded != name:
            raise BranchesChangedError(
                f"the forward must take the same operations at all weights, got {name} instead of {recorded}"
            )
        self._next += 1
        if name not in RULES:
            _refuse_change(name, guarded(name, args, kwargs), pieces)
            return func(*args, **kwargs)
        out = _apart(RULES[name][1](args, kwargs, pieces), pieces)
        return args[0].copy_(out) if in_place else out

    def check_end(self) -> None:
        """Refuse a forward that ended early."""
        if self._next < len(self._pieces):
            raise BranchesChangedError(
                f"the forward must take the same operations at all weights, got its end instead of {self._pieces[self._next][0]}"
            )


def _apart(values: Any, others: Any) -> Any:
    """Values of which none is one of the others: a model may write into what it is given, as detectors do into indices."""
    known = {id(tensor) for tensor in tensors_of(others)}
    return map_tensors(values, lambda tensor: tensor.clone() if id(tensor) in known else tensor)


def _refuse_change(name: str, found: list[Tensor], recorded: list[Tensor]) -> None:
    """Refuse an operation without a rule whose arguments move: its kinks would enter the differences, at every step alike."""
    for now, then in zip(found, recorded, strict=True):
        if not torch.allclose(now, then, rtol=0.0, atol=0.0, equal_nan=True):
            raise UnsupportedKinkError(
                f"method='forwards' must hold every piecewise operation on its piece at w, got {name}, which has no rule; "
                f"use method=None for exact forms, or products of fs.hessian(objective)"
            )
