r"""Perturbed weights :math:`w_t + r\, s_{k,t}\, z_{k,t}`: regenerate, scale and add in one pass, K directions by R radii."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastscape.ops import _checks, _cuda, _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops.direction.reference import Distribution
from fastscape.ops.perturb.prepared import Perturbation
from fastscape.ops.perturb.reference import perturb as _reference

__all__ = ["Perturbation", "perturb"]


def _check(
    weights: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    scales: Tensor,
    groups: Sequence[int],
    radii: Sequence[float],
    dtype: torch.dtype,
    distribution: str,
    firsts: Sequence[int] = (),
) -> None:
    _checks.noise(ids, seed, directions, distribution)
    _checks.tensors("weights", weights, ids)
    sizes = [weight.numel() for weight in weights]
    _checks.groups(sizes, groups)
    _checks.firsts(sizes, firsts)
    _checks.factors("scales", scales, (len(directions), sum(groups)), ids.device)
    if dtype not in _tasks.TYPES:
        raise ValueError(f"dtype must be {_checks.SUPPORTED}, got {dtype}")


def _fake(
    weights: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    scales: Tensor,
    groups: Sequence[int],
    radii: Sequence[float],
    dtype: torch.dtype,
    distribution: str,
    firsts: Sequence[int] = (),
) -> list[Tensor]:
    return [weight.new_empty((len(directions), len(radii), weight.numel()), dtype=dtype) for weight in weights]


def _native_kernel(
    weights: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    scales: Tensor,
    groups: Sequence[int],
    radii: Sequence[float],
    dtype: torch.dtype,
    distribution: str,
    firsts: Sequence[int] = (),
) -> list[Tensor]:
    flat = [weight.contiguous() for weight in weights]
    out = _fake(flat, ids, seed, directions, scales, groups, radii, dtype, distribution)
    layout = _tasks.Layout(ids.tolist(), [weight.numel() for weight in flat], groups, _tasks.BLOCK, firsts)
    layout.use_weights(flat)
    starts = layout.pieces(out)
    strides = np.repeat([w.numel() * out_.element_size() for w, out_ in zip(flat, out, strict=True)], groups)
    rows = np.arange(len(directions) * len(radii), dtype=np.int64)[:, None]
    outputs = np.ascontiguousarray(starts + rows * strides)
    task = _native.native_task(layout, outputs, len(directions), len(radii), dtype, distribution)
    task.run(seed, directions, np.ascontiguousarray(scales.numpy()), radii)
    return out


_OPERATOR = define(
    "perturb(Tensor[] weights, Tensor ids, int seed, int[] directions, Tensor scales, int[] groups, float[] radii, "
    "ScalarType dtype, str distribution, int[] firsts=[]) -> Tensor[]",
    summary="weights plus scaled random directions",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(_native_kernel),
        "CUDA": _triton.kernel("fastscape.ops.perturb.triton", "perturb")
        if _triton.AVAILABLE
        else _cuda.kernel("fastscape.ops.perturb.cuda", "perturb", "cuda/perturb.cu"),
    },
)


def perturb(
    weights: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    directions: Sequence[int],
    scales: Tensor,
    radii: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    distribution: Distribution = "gaussian",
    firsts: Sequence[int] | None = None,
) -> list[Tensor]:
    r"""Weights displaced along K random directions by R radii each: :math:`w_t + (r\, s_{k,t})\, z_{k,t}`.

    The coefficient r s is a float64 product, rounded once to the arithmetic: float64 for float64 results, else float32; one
    multiplication, one addition and one rounding to ``dtype`` follow. The same bits come from every implementation.

    Args:
        weights: T tensors of any shape, float32, float64, bfloat16 or float16.
        ids, seed, directions, distribution, firsts: see :func:`fastscape.ops.direction`.
        scales: float64 ``[K, sum(groups)]`` on the device of the weights.
        radii: R signed floats.
        groups: number of equal pieces of each tensor that have a scale of their own (rows of dim 0); default 1 each.
        dtype: of the results; default the first weight's.

    Returns:
        T tensors ``[K, R, n_t]``.

    Raises:
        ValueError, TypeError: naming the argument.

    Cost: reads the weights K times, writes K R copies; the noise stays in registers or the first-level cache. To write
    into memory that is reused, see :class:`Perturbation`.
    """
    pieces = [1] * len(weights) if groups is None else list(groups)
    wanted = dtype or (weights[0].dtype if weights else torch.float32)
    number, indices = _checks.key(ids, seed, directions)
    steps = [float(r) for r in radii]
    result: list[Tensor] = _OPERATOR(
        list(weights), ids, number, indices, scales, pieces, steps, wanted, distribution, list(firsts or ())
    )
    return result
