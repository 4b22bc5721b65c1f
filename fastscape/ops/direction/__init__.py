r"""Random directions z, rebuilt from (seed, index): the bits of :mod:`fastscape.ops.direction.reference` on every device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastscape.ops import _checks, _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops.direction import reference as _reference
from fastscape.ops.direction.reference import Distribution


def _check(
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> None:
    _checks.noise(ids, seed, directions, distribution)
    _checks.sizes(ids, sizes)
    _checks.firsts(sizes, firsts)


def _fake(
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> list[Tensor]:
    return [ids.new_empty((len(directions), size), dtype=torch.float32) for size in sizes]


def _native_kernel(
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> list[Tensor]:
    out = _fake(ids, seed, directions, sizes, distribution)
    layout = _tasks.Layout(ids.tolist(), sizes, [1] * len(sizes), _tasks.BLOCK, firsts)
    rows = np.arange(len(directions), dtype=np.int64)[:, None]
    outputs = np.ascontiguousarray(layout.pieces(out) + rows * (4 * layout.counts))
    _native.native_task(layout, outputs, len(directions), 1, torch.float32, distribution).run(seed, directions, 0.0, (0.0,))
    return out


class Generation:
    """Writes raw direction (seed, index) into the caller's tensors, with the bits of :func:`direction`; for one thread at a time.

    Args:
        out: T contiguous float32 tensors, rewritten by every call.
        ids: the parameters' 32-bit ids.
        distribution: ``"gaussian"`` or ``"rademacher"``.
        firsts: see :func:`direction`.
    """

    def __init__(
        self,
        out: Sequence[Tensor],
        ids: Sequence[int],
        distribution: Distribution = "gaussian",
        firsts: Sequence[int] | None = None,
    ) -> None:
        self.out, self.distribution, self.firsts = list(out), distribution, list(firsts or ())
        self.sizes = [tensor.numel() for tensor in self.out]
        _checks.one_type("out", self.out, (torch.float32,))
        _checks.contiguous("out", self.out)
        _checks.kind(distribution)
        _checks.firsts(self.sizes, self.firsts)
        self._native: _native.NativeTask | None = None
        if _native.library.available and all(tensor.device.type == "cpu" for tensor in self.out):
            layout = _tasks.Layout(ids, self.sizes, [1] * len(self.sizes), _tasks.BLOCK, self.firsts)
            outputs = np.ascontiguousarray(layout.pieces(self.out)[None])
            self._native = _native.native_task(layout, outputs, 1, 1, torch.float32, distribution)
        else:
            self._ids = torch.tensor(list(ids), device=self.out[0].device)

    def __call__(self, seed: int, index: int) -> None:
        """Generate; on a CPU with the native library nothing is allocated."""
        if self._native is not None:
            self._native.run(seed, (index,), 0.0, (0.0,))
            return
        drawn = direction(self._ids, seed, [index], self.sizes, self.distribution, self.firsts)
        for target, values in zip(self.out, drawn, strict=True):
            target.copy_(values.view(target.shape))


_OPERATOR = define(
    "direction(Tensor ids, int seed, int[] directions, int[] sizes, str distribution, int[] firsts=[]) -> Tensor[]",
    summary="random directions from (seed, index)",
    reference=_reference.directions,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel),
        "CUDA": _triton.kernel("fastscape.ops.direction.triton", "directions"),
    },
)


def direction(
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    distribution: Distribution = "gaussian",
    firsts: Sequence[int] | None = None,
) -> list[Tensor]:
    r"""Raw random directions :math:`z_{k,t}` of standard normals or signs, one tensor per parameter.

    Args:
        ids: 32-bit id of each parameter, int64 ``[T]`` on the device that generates (:func:`tensor_ids`).
        seed: 64-bit key.
        directions: their K indices, each in [0, 2^32).
        sizes: number of elements n_t of each parameter, at most 2^34.
        distribution: ``"gaussian"`` or ``"rademacher"``.
        firsts: element of the whole parameter that each tensor begins with, for shards: the bits are those of the slice
            ``[first, first + n_t)`` of the whole; default 0 each.

    Returns:
        T float32 tensors ``[K, n_t]``, the same bits on every device and from every implementation.

    Raises:
        ValueError, TypeError: naming the argument.

    Cost: writes 4 bytes per element; about 70 instructions per normal and 1 per sign on a GPU.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); Box and Muller (1958).
    """
    number, indices = _checks.key(ids, seed, directions)
    result: list[Tensor] = _OPERATOR(ids, number, indices, list(sizes), distribution, list(firsts or ()))
    return result
