"""Arithmetic of single PTX instructions against references written from the PTX manual with Python's integers and fractions."""

from fractions import Fraction

import numpy as np
import pytest

from ptx import formats
from ptx.snippets import LONG, WORD, execute, random_words, signed


def extract(a, start, length):
    """bfe.s32, as the manual spells it."""
    start, length = start & 255, length & 255
    sign = 0 if length == 0 else a >> min(start + length - 1, 31) & 1
    return sum((a >> (start + i) & 1 if i < length and start + i <= 31 else sign) << i for i in range(32))


def permuted(a, b, selector):
    source = (b << 32 | a).to_bytes(8, "little")
    chosen = [(source[selector >> 4 * k & 7], selector >> 4 * k & 8) for k in range(4)]
    return int.from_bytes(bytes(255 * (byte >> 7) if sign else byte for byte, sign in chosen), "little")


def inserted(a, b, start, length):
    start, length = start & 255, length & 255
    mask = ((1 << length) - 1) << start
    return (b & ~mask | (a << start) & mask) % WORD


def quotient(a, b):
    """C division; by zero: ones in every bit."""
    return -1 if b == 0 else abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


WORDS = {
    "shf.l.wrap.b32 %r3, %r0, %r1, %r2;": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf.l.clamp.b32 %r3, %r0, %r1, %r2;": lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32,
    "shf.r.wrap.b32 %r3, %r0, %r1, %r2;": lambda a, b, c: (b << 32 | a) >> (c & 31),
    "shf.r.clamp.b32 %r3, %r0, %r1, %r2;": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "bfe.u32 %r3, %r0, %r1, %r2;": lambda a, b, c: a >> (b & 255) & ((1 << (c & 255)) - 1),
    "bfe.s32 %r3, %r0, %r1, %r2;": extract,
    "bfi.b32 %r3, %r0, %r1, %r2, 5;": lambda a, b, c: inserted(a, b, c, 5),
    "bfi.b32 %r3, %r0, %r1, 9, %r2;": lambda a, b, c: inserted(a, b, 9, c),
    "prmt.b32 %r3, %r0, %r1, %r2;": permuted,
    "prmt.b32 %r3, %r0, %r1, 0x5410U;": lambda a, b, c: (a & 0xFFFF) | (b & 0xFFFF) << 16,
    "lop3.b32 %r3, %r0, %r1, %r2, 0xE8;": lambda a, b, c: a & b | a & c | b & c,
    "lop3.b32 %r3, %r0, %r1, %r2, 0xCA;": lambda a, b, c: a & b | ~a & c,
    "shl.b32 %r3, %r0, %r2;": lambda a, b, c: a << min(c, 32),
    "shr.u32 %r3, %r0, %r2;": lambda a, b, c: a >> min(c, 32),
    "shr.s32 %r3, %r0, %r2;": lambda a, b, c: signed(a) >> min(c, 32),
    "mul.hi.u32 %r3, %r0, %r1;": lambda a, b, c: a * b >> 32,
    "mul.hi.s32 %r3, %r0, %r1;": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mad.lo.s32 %r3, %r0, %r1, %r2;": lambda a, b, c: a * b + c,
    "mad.hi.u32 %r3, %r0, %r1, %r2;": lambda a, b, c: (a * b >> 32) + c,
    "sub.s32 %r3, %r0, %r1;": lambda a, b, c: a - b,
    "div.s32 %r3, %r0, %r2;": lambda a, b, c: quotient(signed(a), signed(c)),
    "div.u32 %r3, %r0, %r2;": lambda a, b, c: quotient(a, c),
    "rem.u32 %r3, %r0, %r2;": lambda a, b, c: a % c if c else a,
    "min.s32 %r3, %r0, %r1;": lambda a, b, c: min(signed(a), signed(b)),
    "max.u32 %r3, %r0, %r1;": lambda a, b, c: max(a, b),
    "popc.b32 %r3, %r0;": lambda a, b, c: a.bit_count(),
    "clz.b32 %r3, %r0;": lambda a, b, c: 32 - a.bit_length(),
    "brev.b32 %r3, %r0;": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "neg.s32 %r3, %r0;": lambda a, b, c: -a,
    "cvt.s32.s8 %r3, %r0;": lambda a, b, c: signed(a, 8),
    "cvt.s8.s32 %r3, %r0;": lambda a, b, c: signed(a, 8),
    "ld.global.s8 %r3, [%d10];": lambda a, b, c: signed(a, 8),
    "ld.global.u8 %r3, [%d10];": lambda a, b, c: a & 0xFF,
    "cvt.u32.u16 %r3, %r0;": lambda a, b, c: a & 0xFFFF,
    "cvt.s16.s32 %h0, %r0; cvt.s32.s16 %r3, %h0;": lambda a, b, c: signed(a, 16),
    "mov.b32 {%h0, %h1}, %r0; mov.b32 %r3, {%h1, %h0};": lambda a, b, c: a >> 16 | a << 16,
    "setp.lt.s32 %p0|%p1, %r0, %r1; selp.b32 %r3, 1, 0, %p0; @%p1 add.u32 %r3, %r3, 2;": (
        lambda a, b, c: 1 if signed(a) < signed(b) else 2
    ),
    "setp.ne.b32 %p0, %r2, 0; setp.hi.and.u32 %p1, %r0, %r1, !%p0; selp.b32 %r3, 1, 0, %p1;": lambda a, b, c: int(
        a > b and not c
    ),
    "mov.b32 %r3, %r0; { .reg .b32 %r3; mov.b32 %r3, %r1; }": lambda a, b, c: a,  # the inner %r3 is another
}


@pytest.mark.parametrize("body", WORDS)
def test_words(body):
    a, b, c = (random_words(seed=seed) for seed in range(3))
    loads = "".join(f"ld.global.u32 %r{k}, [%d1{k}];" for k in range(3))
    out = execute(f"{loads} {body} st.global.u32 [%d13], %r3;", a, b, c, np.zeros(512, np.uint32))[3]
    expected = [WORDS[body](int(x), int(y), int(z)) % WORD for x, y, z in zip(a, b, c, strict=True)]
    assert [int(each) for each in out] == expected


LONGS = {
    "mul.hi.u64 %d3, %d0, %d1;": lambda a, b: a * b >> 64,
    "mul.hi.s64 %d3, %d0, %d1;": lambda a, b: signed(a, 64) * signed(b, 64) >> 64,
    "mad.lo.s64 %d3, %d0, %d1, %d0;": lambda a, b: a * b + a,
    "div.s64 %d3, %d0, %d1;": lambda a, b: quotient(signed(a, 64), signed(b, 64)),
    "rem.s64 %d3, %d0, %d1;": lambda a, b: signed(a, 64) - quotient(signed(a, 64), signed(b, 64)) * signed(b, 64) if b else a,
    "cvt.u32.u64 %r0, %d0; cvt.u32.u64 %r1, %d1; mul.wide.s32 %d3, %r0, %r1;": lambda a, b: signed(a) * signed(b),
    "cvt.u32.u64 %r0, %d0; cvt.u32.u64 %r1, %d1; mad.wide.u32 %d3, %r0, %r1, %d0;": lambda a, b: a % WORD * (b % WORD) + a,
    "shr.s64 %d3, %d0, 33;": lambda a, b: signed(a, 64) >> 33,
    "bfe.u64 %d3, %d0, 20, 40;": lambda a, b: a >> 20 & (2**40 - 1),
    "bfi.b64 %d3, %d0, %d1, 10, 44;": lambda a, b: b & ~((2**44 - 1) << 10) | (a & (2**44 - 1)) << 10,
    "popc.b64 %r0, %d0; cvt.u64.u32 %d3, %r0;": lambda a, b: a.bit_count(),
    "cvt.u32.u64 %r0, %d0; cvt.s64.s32 %d3, %r0;": lambda a, b: signed(a),
    "mov.b64 {%r0, %r1}, %d0; mov.b64 %d3, {%r1, %r0};": lambda a, b: a >> 32 | a << 32,
}


@pytest.mark.parametrize("body", LONGS)
def test_longs(body):
    a, b = (random_words(np.uint64, seed) for seed in range(2))
    loads = "ld.global.u64 %d0, [%d10]; ld.global.u64 %d1, [%d11];"
    out = execute(f"{loads} {body} st.global.u64 [%d12], %d3;", a, b, np.zeros(512, np.uint64))[2]
    assert [int(each) for each in out] == [LONGS[body](int(x), int(y)) % LONG for x, y in zip(a, b, strict=True)]


def nearest(exact, dtype):
    """The value of ``dtype`` nearest to a fraction, ties to even."""
    near = dtype(float(exact))
    bits = np.uint32 if dtype == np.float32 else np.uint64
    candidates = [np.nextafter(near, dtype(-np.inf)), near, np.nextafter(near, dtype(np.inf))]
    return min(candidates, key=lambda each: (abs(Fraction(float(each)) - exact), int(each.view(bits)) & 1))


def hard_cases(dtype, digits, seed=0):
    """Factors of half the precision and addends near half a unit of their product: sums that all but tie."""
    generator = np.random.default_rng(seed)
    a, b = (generator.integers(2 ** (digits - 1), 2**digits, 300).astype(dtype) for _ in range(2))
    unit = np.ldexp(dtype(1), generator.integers(-2, 2, 300))
    c = np.concatenate([unit[:100] * 2**-60, -unit[100:200] * 2**-60, generator.standard_normal(100) * unit[200:]]).astype(dtype)
    return a, b, c


@pytest.mark.parametrize(("dtype", "digits", "name"), [(np.float32, 13, "f32"), (np.float64, 28, "f64")])
def test_fused_multiply_add_rounds_once(dtype, digits, name):
    a, b, c = hard_cases(dtype, digits)
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    width, letter = (32, "r") if dtype == np.float32 else (64, "d")
    loads = "".join(f"ld.global.b{width} %{letter}{k}, [%d1{k}];" for k in range(3))
    body = f"{loads} fma.rn.{name} %{letter}3, %{letter}0, %{letter}1, %{letter}2; st.global.b{width} [%d13], %{letter}3;"
    out = execute(body, a, b, c, 0 * a)[3]
    np.testing.assert_array_equal(out, [nearest(each, dtype) for each in exact])


def test_a_double_rounding_would_show():
    a, b, c = np.float32(24929 * 2.0**-12), np.float32(673 * 2.0**-12), np.float32(2.0**-80)  # 24929 * 673 = 2**24 + 1
    cases = [np.array([each] * 2, np.float32) for each in (a, b, c)]
    cases[2][1] *= -1
    np.testing.assert_array_equal(formats.fma(*cases), np.array([1 + 2.0**-23, 1], np.float32))
    assert np.float32(float(a) * float(b) + float(c)) == 1


def test_fused_multiply_add_of_float64_at_the_ends_of_its_range():
    a = np.array([1e300, 1e-200, 2.0**1000, -(2.0**1000), 0.0, np.inf, 3e-310, 1e308, np.nan])
    b = np.array([1e-300, 1e-150, 2.0**100, 2.0**100, 5.0, 0.0, 0.5, 10.0, 1.0])
    c = np.array([-1.0, 5e-324, -(2.0**1023), 1.0, -0.0, 1.0, 5e-324, -np.inf, 1.0])
    expected = [float(Fraction(1e300) * Fraction(1e-300) - 1), 5e-324, np.inf, -np.inf, 0.0, np.nan]
    expected += [float(Fraction(3e-310) / 2 + Fraction(5e-324)), -np.inf, np.nan]
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(formats.fma(a, b, c), expected)


def test_packed_float32():
    values = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    arrays = [row.view(np.uint64) for row in values]
    loads = "".join(f"ld.global.b64 %d{k}, [%d1{k}];" for k in range(3))
    body = f"{loads} fma.rn.f32x2 %d3, %d0, %d1, %d2; mul.rn.f32x2 %d3, %d3, %d0; st.global.b64 [%d13], %d3;"
    out = execute(body, *arrays, np.zeros(32, np.uint64))[3]
    np.testing.assert_array_equal(out.view(np.float32), formats.fma(*values) * values[0])


SPECIAL = np.array(
    [0.0, -0.0, 1.5, 2.5, -2.5, 3e9, -3e9, 1e20, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 0.5, -0.5, 7.0], np.float32
)
ONE = {
    "cvt.rzi.s32.f32 %r1, %r0;": [0, 0, 1, 2, -2, 2**31 - 1, -(2**31), 2**31 - 1, 2**31 - 1, -(2**31), 0, 0, 0, 0, 0, 7],
    "cvt.rni.s32.f32 %r1, %r0;": [0, 0, 2, 2, -2, 2**31 - 1, -(2**31), 2**31 - 1, 2**31 - 1, -(2**31), 0, 0, 0, 0, 0, 7],
    "cvt.rmi.s32.f32 %r1, %r0;": [0, 0, 1, 2, -3, 2**31 - 1, -(2**31), 2**31 - 1, 2**31 - 1, -(2**31), 0, 0, -1, 0, -1, 7],
    "cvt.rzi.u32.f32 %r1, %r0;": [0, 0, 1, 2, 0, 3 * 10**9, 0, WORD - 1, WORD - 1, 0, 0, 0, 0, 0, 0, 7],
}


@pytest.mark.parametrize("body", ONE)
def test_floats_to_integers_saturate(body):
    out = execute(f"ld.global.b32 %r0, [%d10]; {body} st.global.b32 [%d11], %r1;", SPECIAL, np.zeros(16, np.uint32))[1]
    assert out.tolist() == [value % WORD for value in ONE[body]]


def bits(*values):
    return [int(np.float32(value).view(np.uint32)) for value in values]


NAN, POSITIVE_ZERO, NEGATIVE_ZERO, TINY = 0x7FFFFFFF, 0, 2**31, 71362  # TINY: 1e-40
TWO = {
    "min.f32 %r2, %r0, %r1;": (bits(0.0, np.nan, -1), bits(-0.0, 3, np.nan), [NEGATIVE_ZERO, *bits(3, -1)]),
    "max.f32 %r2, %r0, %r1;": (bits(-0.0, np.nan, -1), bits(0.0, np.nan, np.nan), [POSITIVE_ZERO, NAN, *bits(-1)]),
    "max.NaN.f32 %r2, %r0, %r1;": (bits(1, np.nan, -1), bits(2, 3, np.nan), [*bits(2), NAN, NAN]),
    "add.f32 %r2, %r0, %r1;": (bits(np.inf, 1, 0), [*bits(-np.inf), 0xFFC12345, TINY], [NAN, NAN, TINY]),
    "add.ftz.f32 %r2, %r0, %r1;": (bits(0, 1, -0.0), [TINY, TINY, 2**31 + TINY], [0, *bits(1), NEGATIVE_ZERO]),
    "mul.sat.f32 %r2, %r0, %r1;": (bits(2, -2, np.nan), bits(2, 2, 2), bits(1, 0, 0)),
    "add.rz.f32 %r2, %r0, %r1;": (bits(1, -1, 3.4e38), bits(3e-8, -9e-8, 3.4e38), [*bits(1, -1), 0x7F7FFFFF]),
    "add.rp.f32 %r2, %r0, %r1;": (bits(1, -1, 1), bits(3e-20, -9e-20, -9e-20), bits(1 + 2**-23, -1, 1)),
    "mul.rm.f32 %r2, %r0, %r1;": (bits(1 + 2**-23, -1, 0), bits(1 - 2**-24, 3, 3), bits(1, -3, 0)),
    "copysign.f32 %r2, %r0, %r1;": (bits(-0.0, 2, np.nan), bits(3, -3, -5), bits(-3, 3, 5)),
    "cvt.rn.bf16x2.f32 %r2, %r0, %r1;": (
        bits(1, 1 + 2**-8, np.nan),
        bits(2, 1 + 3 * 2**-8, 0),
        [0x3F804000, 0x3F803F82, 0x7FFF0000],
    ),
    "cvt.rn.f16x2.f32 %r2, %r0, %r1;": (bits(1, 1 + 2**-11, 1e6), bits(2, -0.0, 0), [0x3C004000, 0x3C008000, 0x7C000000]),
    "cvt.rna.tf32.f32 %r2, %r0;": (bits(1 + 2**-11, 1 + 2**-12, np.inf), bits(0, 0, 0), bits(1 + 2**-10, 1, np.inf)),
    "sub.f32 %r1, %r0, %r0; rcp.rn.f32 %r2, %r1;": (bits(1, 2, 3), bits(0, 0, 0), bits(np.inf, np.inf, np.inf)),
    "setp.ltu.f32 %p0, %r0, %r1; selp.b32 %r2, 1, 0, %p0;": (bits(1, np.nan, 2), bits(2, 0, 1), [1, 1, 0]),
    "setp.ne.f32 %p0, %r0, %r1; selp.b32 %r2, 1, 0, %p0;": (bits(1, np.nan, 2), bits(2, 0, 2), [1, 0, 0]),
    "setp.neu.f32 %p0, %r0, %r1; selp.b32 %r2, 1, 0, %p0;": (bits(1, np.nan, 2), bits(2, 0, 2), [1, 1, 0]),
    "setp.num.f32 %p0, %r0, %r1; selp.b32 %r2, 1, 0, %p0;": (bits(1, np.nan, 2), bits(2, 0, np.nan), [1, 0, 0]),
}


@pytest.mark.parametrize("body", TWO)
def test_special_values(body):
    a, b, expected = (np.array(each, np.uint32) for each in TWO[body])
    text = f"ld.global.b32 %r0, [%d10]; ld.global.b32 %r1, [%d11]; {body} st.global.b32 [%d12], %r2;"
    assert execute(text, a, b, 0 * a)[2].tolist() == expected.tolist()


def nearest_bfloat16(exact):
    """Bits of the bfloat16 nearest to a fraction, ties to even."""
    start = int(np.float32(float(exact)).view(np.uint32)) >> 16
    value = lambda word: Fraction(float(np.uint32(word << 16).view(np.float32)))  # noqa: E731
    return min((start - 1, start, start + 1), key=lambda word: (abs(value(word) - exact), word % 2))


def test_narrow_fused_product_is_rounded_once():
    """Terms of all distances, ties among them."""
    generator = np.random.default_rng(3)
    scales = 2.0 ** generator.integers(-12, 12, (3, 256))
    a, b, c = formats.to_bfloat16((generator.standard_normal((3, 256)) * scales).astype(np.float32))
    c[:64] = formats.to_bfloat16((2.0**-16 * generator.choice([-1, 1], 64)).astype(np.float32))
    loads = "".join(f"ld.global.b16 %h{k}, [%d1{k}];" for k in range(3))
    found = execute(f"{loads} fma.rn.bf16 %h3, %h0, %h1, %h2; st.global.b16 [%d13], %h3;", a, b, c, 0 * a)[3]
    terms = [[Fraction(float(value)) for value in formats.from_bfloat16(words)] for words in (a, b, c)]
    assert found.tolist() == [nearest_bfloat16(x * y + z) for x, y, z in zip(*terms, strict=True)]
