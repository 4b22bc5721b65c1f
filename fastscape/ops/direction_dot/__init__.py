r"""Inner products :math:`\langle v_t, z_{k,t} \rangle` with random directions that are never stored."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape.ops import _checks, _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops.direction.reference import Distribution
from fastscape.ops.direction_dot.reference import direction_dot as _reference


def _check(
    vectors: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    groups: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> None:
    _checks.noise(ids, seed, directions, distribution)
    _checks.tensors("vectors", vectors, ids)
    sizes = [vector.numel() for vector in vectors]
    _checks.groups(sizes, groups)
    _checks.firsts(sizes, firsts)


def _fake(
    vectors: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    groups: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> Tensor:
    return ids.new_empty((len(directions), sum(groups)), dtype=torch.float64)


def _native_kernel(
    vectors: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    groups: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> Tensor:
    flat = [vector.contiguous() for vector in vectors]
    layout = _tasks.Layout(ids.tolist(), [vector.numel() for vector in flat], groups, _tasks.SUM_BLOCK, firsts)
    layout.use_weights(flat)
    return torch.from_numpy(NativeDots(layout, len(directions), distribution)(seed, directions))


class NativeDots:
    """A prepared C++ call: products with the layout's weights, or of the directions with themselves where it has none.

    Threads may share it: ctypes lets go of the interpreter's lock while the kernel runs.
    """

    def __init__(self, layout: _tasks.Layout, directions: int, distribution: str) -> None:
        self._layout = layout
        self._sums = np.empty((directions, layout.size))
        self._indices = np.zeros(directions, dtype=np.uint32)
        self._partial = np.empty((directions, layout.blocks))
        self._task = _tasks.DotTask(
            segments=layout.segments,
            noise=_tasks.Noise(0, 0, _tasks.DISTRIBUTIONS[distribution]),
            directions=directions,
            indices=_tasks.address(self._indices),
            partial=_tasks.address(self._partial),
            sums=_tasks.address(self._sums),
            block_ends=_tasks.address(layout.block_ends),
        )
        self._call = _native.library.bind("dot", self._task)
        self._lock = threading.Lock()

    def __call__(self, seed: int, directions: Sequence[int]) -> NDArray[np.float64]:
        """float64 ``[K, pieces]``."""
        with self._lock:
            self._task.noise.seed = seed & 0xFFFFFFFFFFFFFFFF
            self._indices[:] = directions
            self._call()
            return self._sums.copy()


_OPERATOR = define(
    "direction_dot(Tensor[] vectors, Tensor ids, int seed, int[] directions, int[] groups, str distribution, "
    "int[] firsts=[]) -> Tensor",
    summary="inner products with random directions",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel),
        "CUDA": _triton.kernel("fastscape.ops.direction_dot.triton", "direction_dot"),
    },
)


def direction_dot(
    vectors: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    groups: Sequence[int] | None = None,
    distribution: Distribution = "gaussian",
    firsts: Sequence[int] | None = None,
) -> Tensor:
    r"""Inner products of vectors with raw random directions, tensor by tensor: :math:`\sum_e v_t[e]\, z_{k,t}[e]`.

    Args:
        vectors: one tensor per parameter, float32, float64, bfloat16 or float16, of any shape.
        ids, seed, directions, distribution, firsts: see :func:`fastscape.ops.direction`.
        groups: number of equal pieces of each tensor that get a sum of their own (rows of dim 0); default 1 each.

    Returns:
        float64 ``[K, sum(groups)]`` on the device of ``ids``, the same bits everywhere: products and sums are float64 in
        one fixed order (:mod:`fastscape.ops.direction_dot.reference`).

    Raises:
        ValueError, TypeError: naming the argument.

    Cost: reads every vector K times; nothing of a direction's size is stored.
    """
    pieces = [1] * len(vectors) if groups is None else list(groups)
    number, indices = _checks.key(ids, seed, directions)
    result: Tensor = _OPERATOR(list(vectors), ids, number, indices, pieces, distribution, list(firsts or ()))
    return result
