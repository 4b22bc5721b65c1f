r"""Linear maps with perturbed weights, :math:`x (W + \epsilon s Z)^\top`, that never store or round the perturbed weight.

The two products :math:`x W^\top` and :math:`x Z^\top` are summed apart and combined by one number per row, so that all scales and
both signs of a direction are rows of one tile, and no :math:`W + \epsilon s Z` is rounded.

What it buys on a GPU is memory: no K copies of the weights. A Gaussian element costs about 69 instructions to make, so that the
noise hides behind a matrix unit's product only where one element serves some 1000 rows; a sign, 12 instructions in 16-bit types,
20 with TF32 and 31 in float32, where it serves 200 to 500. A tile has at most 128 rows: where there is memory, generating the
direction once and multiplying stored matrices is faster. :data:`LIMITS` tells where the fused kernel does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fastscape._checks import integer
from fastscape.ops import _checks, _native, _tasks, _triton
from fastscape.ops._registry import define
from fastscape.ops.direction import direction
from fastscape.ops.direction.reference import Distribution
from fastscape.ops.perturbed_linear.reference import perturbed_linear as _reference

LIMITS = "fused where the inputs are a multiple of 4 (128 for signs) and not float64; else one direction is stored at a time"

_NO_IDS = torch.empty(0, dtype=torch.int64)


def _check(
    x: Tensor,
    weight: Tensor,
    id: int,
    seed: int,
    directions: Sequence[int],
    scales: Tensor,
    eps: Tensor,
    distribution: str,
    rank: int = 0,
    right: int = 0,
) -> None:
    integer("id", id, 0, 2**32)
    integer("rank", rank, 0)
    integer("right", right, 0, 2**32)
    _checks.noise(_NO_IDS, seed, directions, distribution)
    if weight.ndim != 2 or weight.dtype not in _tasks.TYPES:
        found = f"{weight.dtype} of shape {tuple(weight.shape)}"
        raise ValueError(f"weight must be {_checks.SUPPORTED} of shape [O, I], got {found}")
    integer("weight.numel()", weight.numel(), 0, _checks.MOST_ELEMENTS + 1)
    count = len(directions)
    if x.ndim not in (2, 3) or x.shape[-1] != weight.shape[1] or (x.ndim == 3 and x.shape[0] != count):
        wanted = f"[M, {weight.shape[1]}] or [{count}, M, {weight.shape[1]}]"
        raise ValueError(f"x must be of shape {wanted} for this weight and {count} directions, got {tuple(x.shape)}")
    if x.dtype != weight.dtype:
        raise ValueError(f"x must be {weight.dtype} as weight is, got {x.dtype}; convert one of them")
    if scales.dtype != torch.float64 or tuple(scales.shape) != (count,):
        found = f"{scales.dtype} of shape {tuple(scales.shape)}"
        raise ValueError(f"scales must be float64 of shape ({count},), one per direction, got {found}")
    shape = (count, x.shape[-2])
    if eps.dtype not in (torch.float32, torch.float64) or tuple(eps.shape) != shape:
        found = f"{eps.dtype} of shape {tuple(eps.shape)}"
        raise ValueError(f"eps must be float32 or float64 of shape {shape}, one per row of x, got {found}")
    for name, tensor in (("weight", weight), ("scales", scales), ("eps", eps)):
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x is on {x.device}; move them to one device")


def _fake(
    x: Tensor,
    weight: Tensor,
    id: int,
    seed: int,
    directions: Sequence[int],
    scales: Tensor,
    eps: Tensor,
    distribution: str,
    rank: int = 0,
    right: int = 0,
) -> Tensor:
    return x.new_empty((len(directions), x.shape[-2], weight.shape[0]))


one_by_one = partial(_reference, generate=direction)  # by the kernel of the device

_OPERATOR = define(
    "perturbed_linear(Tensor x, Tensor weight, int id, int seed, int[] directions, Tensor scales, Tensor eps, "
    "str distribution, int rank=0, int right=0) -> Tensor",
    summary="linear map with randomly perturbed weights",
    reference=_reference,
    fake=_fake,
    check=_check,
    kernels={
        "CPU": _native.kernel(one_by_one, "directions, one stored at a time, or factors; the products are torch's"),
        "CUDA": replace(_triton.kernel("fastscape.ops.perturbed_linear.triton", "perturbed_linear"), limits=LIMITS),
    },
)


def perturbed_linear(
    x: Tensor,
    weight: Tensor,
    id: int,
    seed: int,
    directions: Sequence[int],
    scales: Tensor,
    eps: Tensor,
    distribution: Distribution = "gaussian",
    rank: int = 0,
    right: int = 0,
) -> Tensor:
    r"""Outputs of a linear layer along K random directions of its weight, with a displacement for each row.

    .. math:: y_{k,m} = x_{k,m} W^\top + (\epsilon_{k,m}\, s_k)\; x_{k,m} Z_k^\top

    Element (o, i) of Z is element o I + i of the raw direction (:func:`fastscape.ops.direction`) of the parameter ``id``. The
    coefficient is a float64 product rounded once to the arithmetic: float64 for float64, else float32. In 16-bit dtypes (and with
    TF32 allowed on a GPU) both products take Z rounded to the operands' precision, as W is; signs are exact.

    Args:
        x: ``[K, M, I]``, or ``[M, I]`` shared by all directions and not copied; float32, float64, bfloat16 or float16.
        weight: ``[O, I]`` of the same dtype, at most 2^34 elements.
        id: the parameter's 32-bit id (:func:`tensor_ids`).
        seed: 64-bit key.
        directions: K indices, each in [0, 2^32).
        scales: float64 ``[K]``.
        eps: float32 or float64 ``[K, M]``: scales and both signs of a direction are rows.
        distribution: ``"gaussian"`` or ``"rademacher"``.
        rank: r of :math:`Z = U^\top V`, with element (c, o) of U being element c O + o of the raw direction of ``id``, and (c, i)
            of V element c I + i of that of ``right``; 0 for noise in every element.
        right: id of V.

    Returns:
        ``[K, M, O]`` in the dtype of ``x``.

    Raises:
        ValueError, TypeError: naming the argument.

    Cost: 4 K M I O operations. Fused (GPU, :data:`LIMITS`): reads x and W once per tile from the caches, stores nothing of the
    weight's size, makes every element of Z once per 64 to 128 rows. Otherwise stores one direction at a time, O I elements. Of
    rank r: 2 M I O operations where x is shared, and 2 K M r (I + O); stores K r (I + O) elements.
    """
    number, indices = _checks.key(_NO_IDS, seed, directions)
    result: Tensor = _OPERATOR(x, weight, id, number, indices, scales, eps, distribution, rank, right)
    return result
