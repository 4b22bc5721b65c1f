"""Inner products with random directions in Triton, in the order of additions of :mod:`fastscape.ops.direction_dot.reference`.

A program sums one block of 16384 elements of a piece for one direction. Where a piece does not begin at the generator's counter,
its lanes are taken rotated: folding by halving pairs the same lanes, and the sum of two terms does not depend on their order.
"""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops.direction.triton import locate, noise_block, normals4
from fastscape.ops.direction_dot.reference import LANES, SUM_BLOCK, fold


@triton.jit
def unzip(values, LANES: tl.constexpr):
    """Elements 4 i, 4 i + 1, 4 i + 2 and 4 i + 3, ``[LANES / 4]`` each."""
    even, odd = tl.split(tl.reshape(values, [LANES // 4, 2, 2]))
    v0, v2 = tl.split(even)
    v1, v3 = tl.split(odd)
    return v0, v1, v2, v3


@triton.jit
def product(values, noise, element, begin, end):
    """Float64 products of the elements in [begin, end), zero elsewhere."""
    inside = (element >= begin) & (element < end)
    return tl.where(inside, values.to(tl.float64) * noise.to(tl.float64), 0.0)


@triton.jit
def normal_lanes(vector, begin, end, id, direction, k0, k1, SQUARES: tl.constexpr, LANES: tl.constexpr):
    """Lane sums over the elements [begin, end) of a Gaussian direction, float64 ``[LANES]``.

    The four normals of a counter stay in four accumulators: nothing moves between threads until the lanes are folded.
    """
    id, direction = id.to(tl.uint32), direction.to(tl.uint32)
    k0, k1 = k0.to(tl.uint32, bitcast=True), k1.to(tl.uint32, bitcast=True)
    s0 = tl.zeros([LANES // 4], tl.float64)
    s1, s2, s3 = s0, s0, s0
    origin = tl.multiple_of(begin & -4, 4)
    for offset in range(0, end - origin, LANES):
        base = origin + offset
        q = (base >> 2).to(tl.uint32) + tl.arange(0, LANES // 4).to(tl.uint32)
        n0, n1, n2, n3 = normals4(q, direction, id, k0, k1)
        if SQUARES:
            v0, v1, v2, v3 = n0, n1, n2, n3
        else:
            element = base + tl.arange(0, LANES)
            inside = (element >= begin) & (element < end)
            v0, v1, v2, v3 = unzip(tl.load(vector + element, mask=inside, other=0.0), LANES)
        e = base + tl.arange(0, LANES // 4) * 4
        s0 += product(v0, n0, e, begin, end)
        s1 += product(v1, n1, e + 1, begin, end)
        s2 += product(v2, n2, e + 2, begin, end)
        s3 += product(v3, n3, e + 3, begin, end)
    return tl.reshape(tl.join(tl.join(s0, s2), tl.join(s1, s3)), [LANES])


@triton.jit
def sign_lanes(vector, begin, end, id, direction, k0, k1, SQUARES: tl.constexpr, LANES: tl.constexpr):
    """Lane sums over the elements [begin, end) of a Rademacher direction, float64 ``[LANES]``."""
    sums = tl.zeros([LANES], tl.float64)
    origin = tl.multiple_of(begin & -128, 128)
    for offset in range(0, end - origin, LANES):
        base = origin + offset
        noise = noise_block(base, id, direction, k0, k1, LANES, True)
        element = base + tl.arange(0, LANES)
        if SQUARES:
            values = noise
        else:
            inside = (element >= begin) & (element < end)
            values = tl.load(vector + element, mask=inside, other=0.0)
        sums += product(values, noise, element, begin, end)
    return sums


@triton.jit
def fold_lanes(sums, LANES: tl.constexpr, LEVELS: tl.constexpr):
    """Sum of LANES = 2^LEVELS lanes by halving, ``[1]``; each reduction has two terms, so no compiler can reorder it."""
    for level in tl.static_range(LEVELS):
        sums = tl.sum(tl.reshape(sums, [2, LANES >> (level + 1)]), axis=0)
    return sums


@triton.jit(
    do_not_specialize=["pieces", "directions", "blocks", "k0", "k1"],
    do_not_specialize_on_alignment=["table", "ids", "indices", "vectors", "partial"],
)
def dot_kernel(
    table,  # int64 [5, pieces]: see _triton.Layout
    ids,  # int64, by slot
    indices,  # int64 [K]
    vectors,  # int64, by slot: addresses, of type VECTOR
    partial,  # float64 [K, blocks + 1]
    pieces,
    directions,
    blocks,
    k0,
    k1,
    VECTOR: tl.constexpr,
    SQUARES: tl.constexpr,  # of the directions, instead of products with vectors
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    LEVELS: tl.constexpr,
    RADEMACHER: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The sum of a block for one direction; program = block * K + direction."""
    block, k = tl.program_id(0) // directions, tl.program_id(0) % directions
    t = locate(table, pieces, block)
    start = (block - tl.load(table + pieces + t)) * BLOCK
    first = tl.load(table + 3 * pieces + t)
    begin = first + start
    end = first + tl.minimum(tl.load(table + 2 * pieces + t), start + BLOCK)
    slot = tl.load(table + 4 * pieces + t)
    vector = tl.load(vectors + slot).to(tl.pointer_type(VECTOR))
    if ALIGNED:
        begin, end, vector = tl.multiple_of(begin, 4), tl.multiple_of(end, 4), tl.multiple_of(vector, 16)
    id, direction = tl.load(ids + slot), tl.load(indices + k)
    if RADEMACHER:
        sums = sign_lanes(vector, begin, end, id, direction, k0, k1, SQUARES, LANES)
    else:
        sums = normal_lanes(vector, begin, end, id, direction, k0, k1, SQUARES, LANES)
    total = fold_lanes(sums, LANES, LEVELS)
    tl.store(partial + k.to(tl.int64) * (blocks + 1) + block + tl.arange(0, 1), total)


def direction_dot(
    vectors: Sequence[Tensor],
    ids: Tensor,
    seed: int,
    indices: Sequence[int],
    groups: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> Tensor:
    """See :func:`fastscape.ops.direction_dot.direction_dot`: one launch for each dtype and alignment of the vectors."""
    flat = [vector.contiguous() for vector in vectors]
    sizes = [vector.numel() for vector in flat]
    lengths = [size // group for size, group in zip(sizes, groups, strict=True)]
    begins = list(firsts) or [0] * len(flat)
    places = [_triton.begin_of_whole(vector, first) for vector, first in zip(flat, begins, strict=True)]
    keys = [
        (vector.dtype, _triton.aligned([place], [], length, first))
        for vector, place, length, first in zip(flat, places, lengths, begins, strict=True)
    ]
    addresses = _triton.on_device(places, ids.device)
    return launch(keys, addresses, ids, seed, indices, sizes, groups, distribution, begins)


def launch(
    keys: Sequence[tuple[torch.dtype | None, bool]],
    addresses: Tensor,
    ids: Tensor,
    seed: int,
    indices: Sequence[int],
    sizes: Sequence[int],
    groups: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> Tensor:
    """Inner products, or sums of squares where a key has no dtype: float64 ``[K, sum(groups)]``."""
    device, (k0, k1) = ids.device, _triton.key(seed)
    out = torch.zeros(len(indices), sum(groups), dtype=torch.float64, device=device)
    if not indices:
        return out
    chosen, words = _triton.on_device(indices, device), ids.contiguous()
    with torch.cuda.device_of(ids):
        for (dtype, quick), slots in _triton.slots_by(keys, sizes).items():
            few = tuple(groups[t] for t in slots)
            counts, begins = (tuple(many[t] for t in slots) for many in (sizes, firsts or [0] * len(sizes)))
            layout = _triton.layout(slots, counts, few, SUM_BLOCK, device, begins)
            partial = torch.zeros(len(indices), layout.blocks + 1, dtype=torch.float64, device=device)
            dot_kernel[(layout.blocks * len(indices),)](
                layout.table,
                words,
                chosen,
                addresses,
                partial,
                layout.pieces,
                len(indices),
                layout.blocks,
                k0,
                k1,
                VECTOR=_triton.language_type(dtype or torch.float32),
                SQUARES=dtype is None,
                BLOCK=SUM_BLOCK,
                LANES=LANES,
                LEVELS=LANES.bit_length() - 1,
                RADEMACHER=distribution == "rademacher",
                ALIGNED=quick,
                num_warps=_triton.sum_warps(distribution),
                enable_fp_fusion=False,
            )
            for pieces, gathered in _folds(slots, tuple(sizes), tuple(groups), device):
                out[:, pieces] = fold(partial[:, gathered])
    return out


@functools.lru_cache(maxsize=_triton.LAYOUTS)
def _folds(
    slots: tuple[int, ...], sizes: tuple[int, ...], groups: tuple[int, ...], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Columns of the result and of the partial sums ``[pieces, width]``, for each padded number of blocks of a piece.

    The column after the last block holds zero: the padding of :func:`fastscape.ops.direction_dot.reference.fold`.
    """
    offsets = np.concatenate(([0], np.cumsum(groups)))
    columns = np.concatenate([np.arange(offsets[t], offsets[t + 1]) for t in slots])
    blocks = np.concatenate([np.full(groups[t], _triton.ceil_div(sizes[t] // groups[t], SUM_BLOCK)) for t in slots])
    starts, total = blocks.cumsum() - blocks, int(blocks.sum())
    widths = np.array([1 << int(count - 1).bit_length() for count in blocks])
    found = []
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width)
        inside = np.arange(width) < blocks[rows, None]
        gathered = np.where(inside, starts[rows, None] + np.arange(width), total)
        tables = _triton.on_device(columns[rows], device), _triton.on_device(gathered, device)
        found.append((tables[0], _triton.settled(tables[1])))
    return found
