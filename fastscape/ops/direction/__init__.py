r"""Random directions z, rebuilt from (seed, index): the bits of :mod:`fastscape.ops.direction.reference` on every device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastscape.ops import _checks, _native
from fastscape.ops._registry import Kernel, define
from fastscape.ops.direction import reference as _reference
from fastscape.ops.direction.reference import Distribution


def signed(seed: int) -> int:
    """A 64-bit seed as the int64 that schemas carry."""
    return seed - 2**64 if seed >= 2**63 else seed


def _check(ids: Tensor, seed: int, directions: Sequence[int], sizes: Sequence[int], distribution: str) -> None:
    _checks.noise(ids, seed, directions, distribution)
    _checks.sizes(ids, sizes)


def _fake(ids: Tensor, seed: int, directions: Sequence[int], sizes: Sequence[int], distribution: str) -> list[Tensor]:
    return [ids.new_empty((len(directions), size), dtype=torch.float32) for size in sizes]


def _native_kernel(ids: Tensor, seed: int, directions: Sequence[int], sizes: Sequence[int], distribution: str) -> list[Tensor]:
    out = _fake(ids, seed, directions, sizes, distribution)
    write(out, ids.tolist(), seed, directions, sizes, distribution)
    return out


def write(
    out: Sequence[Tensor],
    ids: Sequence[int],
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    distribution: str,
) -> None:
    """Native kernel into the caller's contiguous float32 CPU tensors, ``[K, n_t]`` each."""
    layout = _native.Layout(ids, sizes, [1] * len(sizes), _native.BLOCK)
    starts = np.array([tensor.data_ptr() for tensor in out], dtype=np.int64)
    rows = np.arange(len(directions), dtype=np.int64)[:, None]
    outputs = np.ascontiguousarray(starts + rows * (4 * np.array(sizes, dtype=np.int64)))
    indices = np.array(directions, dtype=np.uint32)
    task = _native.PerturbTask(
        segments=layout.segments,
        noise=_native.Noise(seed & 0xFFFFFFFFFFFFFFFF, 0, _native.DISTRIBUTIONS[distribution]),
        directions=len(directions),
        indices=_native.address(indices),
        outputs=_native.address(outputs),
        block_ends=_native.address(layout.block_ends),
    )
    _native.library.call("perturb", task)


_OPERATOR = define(
    "direction(Tensor ids, int seed, int[] directions, int[] sizes, str distribution) -> Tensor[]",
    summary="random directions from (seed, index)",
    reference=_reference.directions,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": Kernel(_native_kernel if _native.library.available else None, "C++", _native.library.reason),
    },
)


def direction(
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    sizes: Sequence[int],
    distribution: Distribution = "gaussian",
) -> list[Tensor]:
    r"""Raw random directions :math:`z_{k,t}` of standard normals or signs, one tensor per parameter.

    Args:
        ids: 32-bit id of each parameter, int64 ``[T]`` on the device that generates (:func:`tensor_ids`).
        seed: 64-bit key.
        directions: their K indices, each in [0, 2^32).
        sizes: number of elements n_t of each parameter, at most 2^34.
        distribution: ``"gaussian"`` or ``"rademacher"``.

    Returns:
        T float32 tensors ``[K, n_t]``, the same bits on every device and from every implementation.

    Raises:
        ValueError, TypeError: naming the argument.

    Cost: writes 4 bytes per element; about 70 instructions per normal and 1 per sign on a GPU.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); Box and Muller (1958).
    """
    result: list[Tensor] = _OPERATOR(ids, signed(seed), list(directions), list(sizes), distribution)
    return result
