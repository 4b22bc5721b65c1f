r"""Sums of squares :math:`\|z_{k,t}\|^2` of random directions that are never stored: what normalisation needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape.ops import _checks, _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops.direction.reference import Distribution
from fastscape.ops.direction_dot import NativeDots
from fastscape.ops.direction_dot.reference import squares
from fastscape.ops.direction_norms.reference import direction_norms as _reference


def _check(
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    groups: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> None:
    _checks.noise(ids, seed, directions, distribution)
    _checks.sizes(ids, sizes)
    _checks.groups(sizes, groups)
    _checks.firsts(sizes, firsts)


def _fake(
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    groups: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> Tensor:
    return ids.new_empty((len(directions), sum(groups)), dtype=torch.float64)


def _native_kernel(
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    groups: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> Tensor:
    layout = _tasks.Layout(ids.tolist(), sizes, groups, _tasks.SUM_BLOCK, firsts)
    return torch.from_numpy(NativeDots(layout, len(directions), distribution)(seed, directions))


class Norms:
    """Sums of squares of direction (seed, index), with the bits of :func:`direction_norms`, prepared for many calls.

    Args:
        ids, sizes, groups, distribution, firsts: see :func:`direction_norms`.
    """

    def __init__(
        self,
        ids: Tensor,
        sizes: Sequence[int],
        groups: Sequence[int],
        distribution: Distribution,
        firsts: Sequence[int] | None = None,
    ) -> None:
        _checks.noise(ids, 0, [], distribution)
        _checks.sizes(ids, sizes)
        _checks.groups(sizes, groups)
        _checks.firsts(sizes, begins := list(firsts or ()))
        self._arguments = (ids, list(sizes), list(groups), distribution, begins)
        self._native: NativeDots | None = None
        if _native.library.available and ids.device.type == "cpu":
            layout = _tasks.Layout(ids.tolist(), sizes, groups, _tasks.SUM_BLOCK, begins)
            self._native = NativeDots(layout, 1, distribution)

    def __getstate__(self) -> Any:
        """Copies and pickles prepare their own call: addresses do not travel."""
        return self._arguments

    def __setstate__(self, state: Any) -> None:
        """See :meth:`__getstate__`."""
        self.__init__(*state)  # type: ignore[misc]

    def __call__(self, seed: int, index: int) -> NDArray[np.float64]:
        """float64 ``[sum(groups)]``."""
        found: NDArray[np.float64]
        if self._native is not None:
            found = self._native(seed, (index,))[0]
            return found
        ids, sizes, groups, distribution, firsts = self._arguments
        found = direction_norms(ids, seed, [index], sizes, groups, distribution, firsts)[0].cpu().numpy()
        return found


class StoredNorms:
    """Sums of squares of stored directions: the bits that :class:`Norms` has for generated ones.

    Args:
        raw: T contiguous float32 tensors, read at every call.
        groups: number of equal pieces of each tensor that get a sum of their own.
    """

    def __init__(self, raw: Sequence[Tensor], groups: Sequence[int]) -> None:
        self._raw, self._groups = list(raw), list(groups)
        _checks.one_type("raw", self._raw, (torch.float32,))
        _checks.contiguous("raw", self._raw)
        _checks.groups([tensor.numel() for tensor in self._raw], groups)
        self._native: NativeDots | None = None
        if _native.library.available and all(tensor.device.type == "cpu" for tensor in self._raw):
            sizes = [tensor.numel() for tensor in self._raw]
            layout = _tasks.Layout([0] * len(sizes), sizes, groups, _tasks.SUM_BLOCK)
            layout.use_raw(self._raw)
            self._native = NativeDots(layout, 1, "gaussian")

    def __call__(self) -> NDArray[np.float64]:
        """float64 ``[sum(groups)]``."""
        found: NDArray[np.float64]
        if self._native is not None:
            found = self._native(0, (0,))[0]
            return found
        parts = [squares(z, count) for z, count in zip(self._raw, self._groups, strict=True)]
        found = torch.cat(parts).cpu().numpy()
        return found


_OPERATOR = define(
    "direction_norms(Tensor ids, int seed, int[] directions, int[] sizes, int[] groups, str distribution, "
    "int[] firsts=[]) -> Tensor",
    summary="sums of squares of random directions",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel),
        "CUDA": _triton.kernel("fastscape.ops.direction_norms.triton", "direction_norms"),
    },
)


def direction_norms(
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    groups: Sequence[int] | None = None,
    distribution: Distribution = "gaussian",
    firsts: Sequence[int] | None = None,
) -> Tensor:
    r"""Sums of squares of raw random directions, :math:`\sum_e z_{k,t}[e]^2`, tensor by tensor.

    Args:
        ids, seed, directions, sizes, distribution, firsts: see :func:`fastscape.ops.direction`.
        groups: number of equal pieces of each tensor that get a sum of their own (rows of dim 0); default 1 each.

    Returns:
        float64 ``[K, sum(groups)]`` on the device of ``ids``, the same bits everywhere
        (:mod:`fastscape.ops.direction_dot.reference`). Signs need no pass: their sums are the sizes.

    Raises:
        ValueError, TypeError: naming the argument.

    Cost: regenerates every direction once; reads and writes nothing of its size.
    """
    pieces = [1] * len(sizes) if groups is None else list(groups)
    number, indices = _checks.key(ids, seed, directions)
    result: Tensor = _OPERATOR(ids, number, indices, list(sizes), pieces, distribution, list(firsts or ()))
    return result
