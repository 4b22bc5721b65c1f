"""Random directions in Triton: the bits of :mod:`fastscape.ops.direction.reference`.

Every operation on floats is IEEE-exact, so a kernel that uses these functions must be launched with
``enable_fp_fusion=False``; the device functions are those of ``csrc/philox.h``.
"""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton


@triton.jit
def philox(q, direction, id, k0, k1):
    """Words of Philox4x32-10 under key (k0, k1) for the counter (q, direction, id, 0); all uint32."""
    c0, c1, c2, c3 = q, direction, id, id * 0
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def box_muller(r0, r1):
    """Two float32 normals from two words: radius sqrt(-2 ln u), u = (floor(r0 / 2^9) + 1/2) 2^-23, angle r1 / 2^32 turns."""
    u = ((r0 >> 9).to(tl.int32, bitcast=True).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    shifted = u.to(tl.int32, bitcast=True) - 0x3F3504F3  # ln u = ln m + e ln 2, m in [sqrt(1/2), sqrt(2))
    f = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) + -1.0
    z = f * f
    p = f * 7.0376836292e-2 + -1.1514610310e-1  # Cephes logf
    p = p * f + 1.1676998740e-1
    p = p * f + -1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f + -1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f + -2.4999993993e-1
    p = p * f + 3.3333331174e-1
    p = p * f * z
    p = p + z * -0.5
    log_u = f + p + (shifted >> 23).to(tl.float32) * 0.69314718055994531
    radius = tl.sqrt_rn(log_u * -2.0)

    quadrant = (r1 + 0x20000000) >> 30  # nearest quarter turn; the rest lies in [-1/8, 1/8) turns
    a = ((r1 - (quadrant << 30)).to(tl.int32, bitcast=True) >> 6).to(tl.float32) * 9.362675707309822e-08
    a2 = a * a
    s = a2 * -1.9515295891e-4 + 8.3321608736e-3
    s = s * a2 + -1.6666654611e-1
    s = s * a2 * a + a
    c = a2 * 2.443315711809948e-5 + -1.388731625493765e-3
    c = c * a2 + 4.166664568298827e-2
    c = c * a2 * a2 + (a2 * -0.5 + 1.0)
    odd = (quadrant & 1) == 1
    sine = tl.where(odd, c, s).to(tl.uint32, bitcast=True) ^ ((quadrant & 2) << 30)
    cosine = tl.where(odd, s, c).to(tl.uint32, bitcast=True) ^ (((quadrant + 1) & 2) << 30)
    return radius * cosine.to(tl.float32, bitcast=True), radius * sine.to(tl.float32, bitcast=True)


@triton.jit
def normals4(q, direction, id, k0, k1):
    """Elements 4 q .. 4 q + 3 of a Gaussian direction, float32 each."""
    r0, r1, r2, r3 = philox(q, direction, id, k0, k1)
    n0, n1 = box_muller(r0, r1)
    n2, n3 = box_muller(r2, r3)
    return n0, n1, n2, n3


@triton.jit
def signs(q, direction, id, k0, k1, COUNTERS: tl.constexpr):
    """Elements 128 q[0] .. 128 q[-1] + 127 of a Rademacher direction from COUNTERS counters; a set bit is -1."""
    r0, r1, r2, r3 = philox(q, direction, id, k0, k1)
    words = tl.reshape(tl.join(tl.join(r0, r2), tl.join(r1, r3)), [COUNTERS, 4, 1])
    bits = (words >> tl.arange(0, 32).to(tl.uint32)[None, None, :]) << 31
    return tl.reshape((bits | 0x3F800000).to(tl.float32, bitcast=True), [COUNTERS * 128])


@triton.jit
def noise_block(start, id, direction, k0, k1, BLOCK: tl.constexpr, RADEMACHER: tl.constexpr):
    """Elements start .. start + BLOCK - 1 of a raw direction in memory order, float32 ``[BLOCK]``.

    Args:
        start: int64 multiple of 4, of 128 for signs.
        id, direction: integers of which the low 32 bits count.
        k0, k1: int32 words of the seed (``_triton.key``).
        BLOCK: power of two, at least 4, at least 128 for signs.
        RADEMACHER: signs instead of normals.
    """
    id, direction = id.to(tl.uint32), direction.to(tl.uint32)
    k0, k1 = k0.to(tl.uint32, bitcast=True), k1.to(tl.uint32, bitcast=True)
    if RADEMACHER:
        q = (start >> 7).to(tl.uint32) + tl.arange(0, BLOCK // 128).to(tl.uint32)
        noise = signs(q, direction, id, k0, k1, BLOCK // 128)
    else:
        q = (start >> 2).to(tl.uint32) + tl.arange(0, BLOCK // 4).to(tl.uint32)
        n0, n1, n2, n3 = normals4(q, direction, id, k0, k1)
        noise = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [BLOCK])
    return noise


@triton.jit
def locate(table, pieces, block):
    """The piece that a block belongs to, by bisection of the ends of the pieces' blocks (row 0 of a launch table)."""
    low, high = block * 0, pieces + block * 0
    while low < high:
        middle = (low + high) >> 1
        above = tl.load(table + middle) > block
        high = tl.where(above, middle, high)
        low = tl.where(above, low, middle + 1)
    return low


@triton.jit
def slice_of(table, pieces, t, start, ALIGNED: tl.constexpr):
    """First element of a slice in the whole parameter, and that of a block at a multiple of 128 there (_triton.UNIT)."""
    begin = tl.load(table + 3 * pieces + t)
    start = tl.multiple_of(start + (begin & -128), 128)
    if ALIGNED:
        begin = tl.multiple_of(begin, 4)
    return begin, start


@triton.jit(
    do_not_specialize=["pieces", "directions", "k0", "k1"],
    do_not_specialize_on_alignment=["table", "ids", "indices", "outputs"],
)
def direction_kernel(
    table,  # int64 [5, T]: see _triton.Layout
    ids,  # int64, by slot
    indices,  # int64 [K]
    outputs,  # int64 [T]: addresses of float32 [K, n]
    pieces,
    directions,
    k0,
    k1,
    BLOCK: tl.constexpr,
    RADEMACHER: tl.constexpr,
    ALIGNED: tl.constexpr,
    SHARDS: tl.constexpr,
):
    """A block of one direction; program = block * K + direction. SHARDS: outputs are slices, addressed as if whole."""
    block, k = tl.program_id(0) // directions, tl.program_id(0) % directions
    t = locate(table, pieces, block)
    start = (block - tl.load(table + pieces + t)) * BLOCK
    count = tl.load(table + 2 * pieces + t)
    id = tl.load(ids + tl.load(table + 4 * pieces + t))
    address = tl.load(outputs + t) + k.to(tl.int64) * count * 4
    target = address.to(tl.pointer_type(tl.float32))
    if ALIGNED:
        count, target = tl.multiple_of(count, 4), tl.multiple_of(target, 16)
    if SHARDS:
        begin, start = slice_of(table, pieces, t, start, ALIGNED)
    noise = noise_block(start, id, tl.load(indices + k), k0, k1, BLOCK, RADEMACHER)
    element = start + tl.arange(0, BLOCK)
    inside = (element >= begin) & (element < begin + count) if SHARDS else element < count
    tl.store(target + element, noise, mask=inside)


def directions(
    ids: Tensor,
    seed: int,
    indices: Sequence[int],
    sizes: Sequence[int],
    distribution: str,
    firsts: Sequence[int] = (),
) -> list[Tensor]:
    """See :func:`fastscape.ops.direction.direction`: one launch for the tensors whose rows are aligned, one for the others."""
    device, count = ids.device, len(indices)
    out = [torch.empty(count, size, dtype=torch.float32, device=device) for size in sizes]
    if not indices:
        return out
    config, (k0, k1) = _triton.noise_config(distribution), _triton.key(seed)
    chosen, words = _triton.on_device(indices, device), ids.contiguous()
    begins = list(firsts) or [0] * len(sizes)
    places = [_triton.begin_of_whole(tensor, first) for tensor, first in zip(out, begins, strict=True)]
    aligned = [
        _triton.aligned([place], [4 * size], size, first) for place, size, first in zip(places, sizes, begins, strict=True)
    ]
    with torch.cuda.device_of(ids):
        for quick, slots in _triton.slots_by(aligned, sizes).items():
            layout = _triton.noise_layout(slots, sizes, begins, config.block, device)
            outputs = _triton.on_device([places[t] for t in slots], device)
            direction_kernel[(layout.blocks * count,)](
                layout.table,
                words,
                chosen,
                outputs,
                layout.pieces,
                count,
                k0,
                k1,
                BLOCK=config.block,
                RADEMACHER=distribution == "rademacher",
                ALIGNED=quick,
                SHARDS=any(begins),
                num_warps=config.warps,
                enable_fp_fusion=False,
            )
    return out
