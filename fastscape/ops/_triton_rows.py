"""Shared parts of the Triton kernels on rows: tiles of whole rows, exponentials relative to the largest, and their lanes."""
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from fastscape.ops._row_lanes import PLAIN
from fastscape.ops._triton_functions import exp, expm1

SWITCH = tl.constexpr(0.25)  # largest displacement that six coefficients of the exponential take
GROWN = tl.constexpr(PLAIN)
SHORT = 64  # columns of rows of which a thread has several, each with numbers of its own: it takes fewer
PROGRAMS = 1024  # as many as fill any chip; beyond them a program takes several directions


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a program's tile, and its warps."""

    rows: int
    columns: int
    warps: int


def tile(columns: int, most: int, each: int) -> Tile:
    """Whole rows of up to ``most`` columns, several where they are short; ``each`` elements a thread."""
    width = min(triton.next_power_of_2(max(columns, 1)), most)
    height = max(1, 32 * each // width)
    return Tile(height, width, max(1, min(16, height * width // (32 * each))))


@triton.jit
def weight(x, top):
    """e^(x - top) and x - top in float32; the difference is exact to twice its digits."""
    wide = x.to(tl.float64) - top.to(tl.float64)
    narrow = wide.to(tl.float32)
    lost = (wide - narrow.to(tl.float64)).to(tl.float32)
    return tl.where(narrow == float("-inf"), 0.0, exp(narrow) * (1.0 + lost)), narrow


@triton.jit
def rises(a, b, e):
    """Lanes of e^(x± - x) from those of x."""
    half = 0.5 * e * b
    up, down = a + half, a - half
    product = up * down
    d, q = e * (e * b), e * (e * product)
    second = 1.0 / 120.0 + d * (1.0 / 720.0)
    first = 1.0 / 24.0 + d * second + q * (1.0 / 720.0)
    second, first = first, 1.0 / 6.0 + d * first + q * second
    second, first = first, 0.5 + d * first + q * second
    second, first = first, 1.0 + d * first + q * second
    rise_a, rise_b = a * first, b * first + 2.0 * product * second
    large = tl.maximum(tl.abs(e * up), tl.abs(e * down)) > SWITCH
    if tl.max(tl.max(large.to(tl.int32), 1), 0) > 0:
        unit = 1.0 / tl.where(e == 0, 1.0, e)
        plus, minus = expm1(e * up), expm1(-(e * down))
        rise_a = tl.where(large, 0.5 * unit * (plus - minus), rise_a)
        rise_b = tl.where(large, unit * (unit * (plus + minus)), rise_b)
    return rise_a, rise_b


@triton.jit
def any_true(condition):
    """Whether a condition holds anywhere in a column of rows."""
    return tl.max(condition.to(tl.int32), 0) > 0
