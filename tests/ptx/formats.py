"""PTX types as NumPy types, and arithmetic that NumPy lacks: bfloat16, tf32, fused multiply-add, wide products."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

BITS = {
    **{"pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16},
    **{"b32": 32, "u32": 32, "s32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32, "tf32": 32},
    **{"b64": 64, "u64": 64, "s64": 64, "f64": 64, "f32x2": 64},
}
UNSIGNED = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "f32x2": np.float32}
CANONICAL_NAN = np.uint32(0x7FFFFFFF)  # what float32 arithmetic returns for every NaN


def kind(name: str) -> str:
    """``int``, ``float`` (with arithmetic in NumPy), ``half`` (16 bits) or ``none`` (no type)."""
    if name not in BITS:
        return "none"
    if name in ("f32", "f64", "f32x2"):
        return "float"
    return "half" if name in ("f16", "bf16", "f16x2", "bf16x2", "tf32") else "int"


def from_bfloat16(words: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits in uint16."""
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits (uint16) of float32 ``values`` rounded to the nearest bfloat16, ties to even; NaN becomes 0x7FFF."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))


def truncate_to_tf32(bits: np.ndarray) -> np.ndarray:
    """float32 values of uint32 ``bits`` as a tensor core reads them: the lowest 13 bits do not count."""
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def round_to_tf32(bits: np.ndarray) -> np.ndarray:
    """``cvt.rna.tf32``: to the nearest of 10 mantissa bits, ties away from zero."""
    special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    return np.where(special, bits, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000))


def flush_subnormals(values: np.ndarray) -> np.ndarray:
    """``.ftz``: float32 subnormal numbers become zeros of their sign."""
    bits = values.view(np.uint32)
    subnormal = (bits & np.uint32(0x7F800000)) == 0
    return np.where(subnormal, bits & np.uint32(0x80000000), bits).view(np.float32)


def two_sum(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rounded sum and its exact error (Knuth)."""
    total = x + y
    shadow = total - x
    return total, (x - (total - shadow)) + (y - shadow)


def add_to_odd(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """float64 sum rounded to odd: an inexact sum keeps a set last bit, so that a second rounding cannot meet a false tie."""
    total, error = two_sum(x, y)
    even = (total.view(np.uint64) & np.uint64(1)) == 0
    return np.where(np.isfinite(total) & (error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``a * b + c`` rounded once to the type of the arguments (float32 or float64)."""
    if a.dtype == np.float32:  # the product of two float32 is exact in float64
        return add_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)).astype(np.float32)
    return _fma64(*np.broadcast_arrays(a, b, c))


def directed(exact: np.ndarray, mode: str) -> np.ndarray:
    """float32 of a float64 that is exact or rounded to odd: ``rz`` towards zero, ``rm`` down, ``rp`` up."""
    nearest = exact.astype(np.float32)
    limit = np.float32({"rz": 0, "rm": -np.inf, "rp": np.inf}[mode])
    beyond = {"rz": np.abs(nearest) > np.abs(exact), "rm": nearest > exact, "rp": nearest < exact}[mode]
    return np.where(beyond, np.nextafter(nearest, limit), nearest)


def to_odd(exact: np.ndarray) -> np.ndarray:
    """float32 of a float64 that is exact or rounded to odd, itself rounded to odd: rounding it again rounds once."""
    nearer = directed(exact, "rz")
    return (nearer.view(np.uint32) | (nearer != exact)).view(np.float32)


def _split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Veltkamp: two halves of 26 bits."""
    scaled = 134217729.0 * x
    high = scaled - (scaled - x)
    return high, x - high


def _fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Boldo and Melquiond (2008), figure 4; integers of any length where its products would over- or underflow."""
    product = a * b
    (a1, a0), (b1, b0) = _split(a), _split(b)
    error = a0 * b0 - (((product - a1 * b1) - a0 * b1) - a1 * b0)
    inner, inner_error = two_sum(c, error)
    outer, outer_error = two_sum(product, inner)
    result = outer + add_to_odd(inner_error, outer_error)
    factors = np.isfinite(a) & np.isfinite(b)
    finite = factors & np.isfinite(c)
    result = np.where(finite, result, np.where(factors, c, product + c))
    largest, zero = np.maximum(np.abs(a), np.abs(b)), (a == 0) | (b == 0)
    result = np.where(zero, product + c, result)
    risky = finite & ~zero & ((largest > 2.0**500) | (np.abs(product) < 2.0**-900) | (np.abs(c) > 2.0**1000))
    for i in np.nonzero(risky)[0]:
        result[i] = _exact_fma(float(a[i]), float(b[i]), float(c[i]))
    return result


def _exact_fma(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return float(exact) if exact else a * b + c  # of an exact zero only the sign is open
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def high_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Upper half of the product of two integer arrays of one type, as unsigned bits."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = a.dtype.kind + str(2 * a.dtype.itemsize)
        return ((a.astype(wide) * b.astype(wide)) >> bits).astype(UNSIGNED[bits])
    x, y = a.view(np.uint64), b.view(np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> shift, y & low, y >> shift
    middle = x1 * y0 + (x0 * y0 >> shift)
    carry = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> shift) + (carry >> shift)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high


def permute_bytes(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """``prmt.b32``: four bytes out of eight, each by a nibble whose top bit replicates the sign."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros_like(a)
    for place in range(4):
        nibble = (selector >> np.uint32(4 * place)) & np.uint32(0xF)
        byte = (both >> (np.uint64(8) * (nibble & np.uint32(7)).astype(np.uint64))).astype(np.uint32) & np.uint32(0xFF)
        sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
        result |= np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * place)
    return result


def extreme(a: np.ndarray, b: np.ndarray, largest: bool, propagate: bool = False) -> np.ndarray:
    """PTX ``min`` and ``max`` of floats: a number wins over NaN unless ``propagate``, and -0 is below +0."""
    bits = UNSIGNED[8 * a.dtype.itemsize]
    x, y = np.ascontiguousarray(a).view(bits), np.ascontiguousarray(b).view(bits)
    ties = ((x & y) if largest else (x | y)).view(a.dtype)
    result = np.where(a == b, ties, np.fmax(a, b) if largest else np.fmin(a, b))
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), result) if propagate else result
