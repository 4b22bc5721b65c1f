"""Weights plus scaled random directions: the specification in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscape.ops.direction.reference import Distribution, directions


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype that perturbations are computed in: float64 for float64 results, else float32 (rounded once on store)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def perturb(
    weights: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    indices: Sequence[int],
    scales: Tensor,
    groups: Sequence[int],
    radii: Sequence[float],
    dtype: torch.dtype,
    distribution: Distribution,
    firsts: Sequence[int] = (),
) -> list[Tensor]:
    """See :func:`fastscape.ops.perturb.perturb`."""
    noise = directions(ids, seed, indices, [weight.numel() for weight in weights], distribution, firsts)
    return [
        displaced(weight, z, scale, radii, dtype)
        for weight, z, scale in zip(weights, noise, torch.split(scales, list(groups), 1), strict=True)
    ]


def displaced(weight: Tensor, noise: Tensor, scales: Tensor, radii: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Return ``w + (radius scale) z``, ``[K, R, n]``, from noise ``[K, n]`` and scales ``[K, groups]``.

    Two roundings in the arithmetic of ``dtype``, after one of the float64 coefficient: no fused multiply-add.
    """
    compute = arithmetic(dtype)
    count, groups = weight.numel(), scales.shape[1]
    steps = torch.tensor(list(radii), dtype=torch.float64, device=scales.device)
    coefficients = (steps[:, None] * scales[:, None, :]).to(compute).unsqueeze(3)  # (K, R, groups, 1)
    pieces = noise.reshape(len(noise), 1, groups, count // groups).to(compute)
    moved = coefficients * pieces + weight.reshape(groups, count // groups).to(compute)
    return moved.to(dtype).reshape(len(noise), len(steps), count)
