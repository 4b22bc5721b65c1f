"""Perturbed weights in Triton: a block of a direction is made once and used for all radii.

The bits of :mod:`fastscape.ops.perturb.reference`: coefficients are rounded outside the kernel, and ``enable_fp_fusion=False``
keeps multiplication and addition apart.
"""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops.direction.triton import locate, noise_block, slice_of
from fastscape.ops.perturb.reference import arithmetic


@triton.jit
def pieces_after(start, before, length, BLOCK: tl.constexpr):
    """How many pieces after the piece ``before`` the elements start .. start + BLOCK - 1 lie, int32 ``[BLOCK]``.

    The quotients come from float32, exactly: pieces have ``length`` elements, a numerator at a half stays 1 / (2 length) away
    from the next integer, and the error of the quotient is 2^-9 / length.
    """
    left = tl.minimum((before + 1) * length - start, BLOCK).to(tl.int32)  # elements of the first piece
    width = tl.minimum(length, BLOCK).to(tl.float32)
    beyond = tl.arange(0, BLOCK) - left
    later = ((beyond.to(tl.float32) + 0.5) * (1.0 / width)).to(tl.int32) + 1
    return tl.where(beyond < 0, 0, later)


@triton.jit(
    do_not_specialize=["pieces", "tensors", "directions", "radii", "total", "k0", "k1"],
    do_not_specialize_on_alignment=["table", "columns", "ids", "indices", "coefficients", "weights", "outputs"],
)
def perturb_kernel(
    table,  # int64 [5, pieces]: see _triton.Layout
    columns,  # int64 [2, T], by slot: first column of the coefficients, elements for each
    ids,  # int64, by slot
    indices,  # int64 [K]
    coefficients,  # COMPUTE [K, R, total]
    weights,  # int64 [T], by slot: addresses, of type WEIGHT
    outputs,  # int64 [R, T], by slot: addresses for direction 0, of type OUT; a direction is R n elements from the next
    pieces,
    tensors,
    directions,
    radii,
    total,
    k0,
    k1,
    WEIGHT: tl.constexpr,
    OUT: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
    RADEMACHER: tl.constexpr,
    GROUPED: tl.constexpr,
    ALIGNED: tl.constexpr,
    SHARDS: tl.constexpr,
):
    """A block of the weights along one direction, at all radii; program = block * K + direction.

    SHARDS: weights and outputs are slices of whole parameters and addressed as if those were there.
    """
    block, k = tl.program_id(0) // directions, tl.program_id(0) % directions
    t = locate(table, pieces, block)
    start = (block - tl.load(table + pieces + t)) * BLOCK
    count = tl.load(table + 2 * pieces + t)
    slot = tl.load(table + 4 * pieces + t)
    weight = tl.load(weights + slot).to(tl.pointer_type(WEIGHT))
    if ALIGNED:
        count, weight = tl.multiple_of(count, 4), tl.multiple_of(weight, 16)
    place = start  # in the tensor
    if SHARDS:
        begin, start = slice_of(table, pieces, t, start, ALIGNED)
        place = start - begin
    element = start + tl.arange(0, BLOCK)
    inside = (element >= begin) & (element < begin + count) if SHARDS else element < count
    w = tl.load(weight + element, mask=inside, other=0.0).to(COMPUTE)
    z = noise_block(start, tl.load(ids + slot), tl.load(indices + k), k0, k1, BLOCK, RADEMACHER).to(COMPUTE)
    column = tl.load(columns + slot)
    if GROUPED:
        length = tl.load(columns + tensors + slot)
        before = tl.maximum(place, 0) // length if SHARDS else place // length
        column += before
        after = pieces_after(place, before, length, BLOCK)
    row = k.to(tl.int64) * radii
    for r in range(radii):
        if GROUPED:
            c = tl.load(coefficients + (row + r) * total + column + after, mask=inside, other=0.0)
        else:
            c = tl.load(coefficients + (row + r) * total + column)
        target = tl.load(outputs + r * tensors + slot).to(tl.pointer_type(OUT)) + row * count
        if ALIGNED:
            target = tl.multiple_of(target, 16)
        tl.store(target + element, (w + c * z).to(OUT), mask=inside)


@dataclass(frozen=True)
class _Launch:
    """Tensors that one launch takes: equal in the weights' dtype and in whether they are aligned."""

    layout: _triton.Layout
    weight: torch.dtype
    aligned: bool


class Launches:
    """Prepared launches that write ``w_t + c_{k,r,p} z_{k,t}``; the tensors must outlive them.

    Args:
        weights: T contiguous tensors.
        outputs: addresses, int64 ``[R, T]``, of the results along the first direction; those along the next one follow after
            R n_t elements.
        groups: pieces of each tensor that have a coefficient of their own.
        dtype: of the results.
        distribution: ``"gaussian"`` or ``"rademacher"``.
        firsts: element of the whole parameter that each weight begins with; default 0.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        outputs: NDArray[np.int64],
        groups: Sequence[int],
        dtype: torch.dtype,
        distribution: str,
        firsts: Sequence[int] = (),
    ) -> None:
        self._dtype, self._distribution = dtype, distribution
        self._device = weights[0].device
        self._config = _triton.perturb_config()
        sizes = [weight.numel() for weight in weights]
        self._firsts = list(firsts) or [0] * len(sizes)
        outputs = outputs - np.array(self._firsts, dtype=np.int64) * dtype.itemsize
        begins = [_triton.begin_of_whole(weight, first) for weight, first in zip(weights, self._firsts, strict=True)]
        addresses = np.array(begins, dtype=np.int64)
        self._grouped = any(count > 1 for count in groups)
        self._columns = _columns(tuple(sizes), tuple(groups), self._device)
        self._weights, self._outputs = _triton.on_device(addresses, self._device), _triton.on_device(outputs, self._device)
        rows = len(outputs) * dtype.itemsize
        keys = [
            (weight.dtype, _triton.aligned([int(address), *map(int, column)], [rows * size], size, first))
            for weight, size, first, address, column in zip(weights, sizes, self._firsts, addresses, outputs.T, strict=True)
        ]
        self._launches = [
            _Launch(self._layout(slots, sizes), weight, quick) for (weight, quick), slots in _triton.slots_by(keys, sizes).items()
        ]

    def _layout(self, slots: tuple[int, ...], sizes: Sequence[int]) -> _triton.Layout:
        return _triton.noise_layout(slots, sizes, self._firsts, self._config.block, self._device)

    def run(self, seed: int, ids: Tensor, indices: Tensor, coefficients: Tensor) -> None:
        """Write the results.

        Args:
            seed: key of the generator.
            ids: int64 ``[T]``, contiguous.
            indices: int64 ``[K]``, contiguous.
            coefficients: contiguous ``[K, R, sum(groups)]`` in the arithmetic of the results.
        """
        k0, k1 = _triton.key(seed)
        directions, radii, total = coefficients.shape
        if not radii:
            return
        with torch.cuda.device_of(ids):
            for launch in self._launches:
                perturb_kernel[(launch.layout.blocks * directions,)](
                    launch.layout.table,
                    self._columns,
                    ids,
                    indices,
                    coefficients,
                    self._weights,
                    self._outputs,
                    launch.layout.pieces,
                    len(self._weights),
                    directions,
                    radii,
                    total,
                    k0,
                    k1,
                    WEIGHT=_triton.language_type(launch.weight),
                    OUT=_triton.language_type(self._dtype),
                    COMPUTE=_triton.language_type(arithmetic(self._dtype)),
                    BLOCK=self._config.block,
                    RADEMACHER=self._distribution == "rademacher",
                    GROUPED=self._grouped,
                    ALIGNED=launch.aligned,
                    SHARDS=any(self._firsts),
                    num_warps=self._config.warps,
                    enable_fp_fusion=False,
                )


@functools.lru_cache(maxsize=_triton.LAYOUTS)
def _columns(sizes: tuple[int, ...], groups: tuple[int, ...], device: torch.device) -> Tensor:
    """First column of each tensor's coefficients and elements for each, int64 ``[2, T]``."""
    many = np.array(groups, dtype=np.int64)
    rows = (many.cumsum() - many, np.array(sizes, dtype=np.int64) // many)
    return _triton.settled(_triton.on_device(np.stack(rows), device))


def perturb(
    weights: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    indices: Sequence[int],
    scales: Tensor,
    groups: Sequence[int],
    radii: Sequence[float],
    dtype: torch.dtype,
    distribution: str,
    firsts: Sequence[int] = (),
) -> list[Tensor]:
    """See :func:`fastscape.ops.perturb.perturb`: one launch for each dtype and alignment of the weights."""
    flat = [weight.contiguous() for weight in weights]
    out = [torch.empty(len(indices), len(radii), weight.numel(), dtype=dtype, device=ids.device) for weight in flat]
    if flat and indices and radii:
        starts = np.array([tensor.data_ptr() for tensor in out], dtype=np.int64)
        strides = np.array([tensor.shape[2] * dtype.itemsize for tensor in out], dtype=np.int64)
        outputs = starts + np.arange(len(radii))[:, None] * strides
        steps = torch.tensor(list(radii), dtype=torch.float64).to(ids.device, non_blocking=True)
        coefficients = (steps[:, None] * scales[:, None, :]).to(arithmetic(dtype)).contiguous()
        launches = Launches(flat, outputs, groups, dtype, distribution, firsts)
        launches.run(seed, ids.contiguous(), _triton.on_device(indices, ids.device), coefficients)
    return out


class Prepared:
    """Launches into the caller's tensors along one direction a call; see :class:`fastscape.ops.perturb.prepared.Perturbation`.

    Args:
        weights: T contiguous tensors on one device.
        outputs: R lists of T contiguous tensors there, of one dtype.
        ids: the parameters' 32-bit ids.
        groups: number of equal pieces of each tensor that have a scale of their own.
        distribution: ``"gaussian"`` or ``"rademacher"``.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        outputs: Sequence[Sequence[Tensor]],
        ids: Sequence[int],
        groups: Sequence[int],
        distribution: str,
        firsts: Sequence[int] = (),
    ) -> None:
        addresses = np.array([[tensor.data_ptr() for tensor in row] for row in outputs], dtype=np.int64)
        self._dtype, self._device = outputs[0][0].dtype, weights[0].device
        self._launches = Launches(weights, addresses, groups, self._dtype, distribution, firsts)
        self._ids = _triton.settled(_triton.on_device(ids, self._device))

    def aim(self, seed: int, indices: Sequence[int], scales: NDArray[np.float64]) -> None:
        """Choose the direction, ``indices[0]``, and its scales ``[sum(groups)]``."""
        self._seed, self._indices = seed, _triton.on_device(indices, self._device)
        self._scales = torch.tensor(scales)  # a copy, as the caller may use the array again

    def write(self, radii: Sequence[float]) -> None:
        """Write the results for R radii."""
        steps = torch.tensor(list(radii), dtype=torch.float64)
        coefficients = (steps[:, None] * self._scales).to(arithmetic(self._dtype)).unsqueeze(0)  # (1, R, pieces)
        self._launches.run(self._seed, self._ids, self._indices, coefficients.to(self._device, non_blocking=True))
