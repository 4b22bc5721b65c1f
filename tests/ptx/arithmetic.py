"""Instructions that work on registers alone: integers, floats, comparisons, conversions, moves.

Sums, products, fused products, quotients and square roots are rounded once. The approximate instructions
(``div.full``, ``rsqrt``, ``rcp``, ``ex2``, ``lg2``, ``sin``, ``cos``, ``tanh``) give the rounded true value, from which a chip
may differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx import formats
from ptx.formats import BITS, FLOAT, SIGNED, UNSIGNED
from ptx.machine import ROUNDINGS, Machine, executes
from ptx.parser import Instruction

Binary = Callable[[np.ndarray, np.ndarray], np.ndarray]


def same_bits(values: np.ndarray) -> np.ndarray:
    """Integers as unsigned integers of their width."""
    return values.view(UNSIGNED[8 * values.dtype.itemsize])


# Integers


@executes("add", "sub", "and", "or", "xor")
def _bitwise_or_sum(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    names = {"add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    bits = BITS[i.type]
    m.write(i.operands[0], names[i.opcode](m.read(i.operands[1], bits), m.read(i.operands[2], bits)), mask)


@executes("not")
def _not(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    m.write(i.operands[0], ~m.read(i.operands[1], BITS[i.type]), mask)


@executes("neg", "abs")
def _sign(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    values = m.signed(i.operands[1], BITS[i.type])
    m.write(i.operands[0], same_bits(-values if i.opcode == "neg" else np.abs(values)), mask)


@executes("mul", "mad", accepts="lo hi wide")
def _product(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    a, b = m.integers(i.operands[1], i.type), m.integers(i.operands[2], i.type)
    bits = BITS[i.type]
    if "wide" in i.modifiers:
        bits *= 2
        wide = SIGNED if i.type[0] == "s" else UNSIGNED
        result = same_bits(a.astype(wide[bits]) * b.astype(wide[bits]))
    elif "hi" in i.modifiers:
        result = formats.high_product(a, b)
    else:
        result = same_bits(a * b)
    m.write(i.operands[0], result + m.read(i.operands[3], bits) if i.opcode == "mad" else result, mask)


@executes("div", "rem")
def _quotient(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """Towards zero; by zero: ones in every bit, and the dividend as the remainder."""
    a, b = m.integers(i.operands[1], i.type), m.integers(i.operands[2], i.type)
    size, divisor = same_bits(np.abs(a)), same_bits(np.abs(b))
    quotient = size // np.where(divisor == 0, divisor.dtype.type(1), divisor)
    quotient = np.where((a < 0) != (b < 0), -quotient, quotient)
    quotient = np.where(b == 0, ~np.zeros_like(quotient), quotient)
    remainder = np.where(b == 0, same_bits(a), same_bits(a) - quotient * same_bits(b))
    m.write(i.operands[0], quotient if i.opcode == "div" else remainder, mask)


@executes("min", "max")
def _integer_extreme(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    choose = np.minimum if i.opcode == "min" else np.maximum
    m.write(i.operands[0], same_bits(choose(m.integers(i.operands[1], i.type), m.integers(i.operands[2], i.type))), mask)


@executes("shl", "shr")
def _shift(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """By any amount: what is shifted past the end is zeros, or copies of the sign."""
    bits = BITS[i.type]
    values, amount = m.integers(i.operands[1], i.type), m.read(i.operands[2], 32)
    amount_within = np.minimum(amount, np.uint32(bits - 1)).astype(values.dtype)
    if i.opcode == "shr" and i.type[0] == "s":
        result = same_bits(values >> amount_within)
    else:
        shifted = same_bits(values << amount_within if i.opcode == "shl" else values >> amount_within)
        result = np.where(amount >= bits, UNSIGNED[bits](0), shifted)
    m.write(i.operands[0], result, mask)


@executes("shf", accepts="l r wrap clamp")
def _funnel_shift(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    low, high, amount = (m.read(operand, 32).astype(np.uint64) for operand in i.operands[1:])
    amount = amount & np.uint64(31) if "wrap" in i.modifiers else np.minimum(amount, np.uint64(32))
    both = (high << np.uint64(32)) | low
    result = (both << amount) >> np.uint64(32) if "l" in i.modifiers else both >> amount
    m.write(i.operands[0], result.astype(np.uint32), mask)


@executes("bfe")
def _extract_field(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    wide = np.int64 if i.type[0] == "s" else np.uint64
    values = m.integers(i.operands[1], i.type).astype(wide)
    start, length = (m.read(operand, 32) & np.uint32(0xFF) for operand in i.operands[2:])
    values = values >> np.minimum(start, np.uint32(63)).astype(wide)
    if i.type[0] == "u":
        values = np.where(start >= BITS[i.type], wide(0), values)
    rest = (np.uint32(64) - np.clip(length, np.uint32(1), np.uint32(64))).astype(wide)
    values = np.where(length == 0, wide(0), (values << rest) >> rest)
    m.write(i.operands[0], values.astype(UNSIGNED[BITS[i.type]]), mask)


@executes("bfi")
def _insert_field(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    bits = BITS[i.type]
    source, target = (m.read(operand, bits).astype(np.uint64) for operand in i.operands[1:3])
    start, length = (m.read(operand, 32) & np.uint32(0xFF) for operand in i.operands[3:])
    ones = np.where(
        length >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(length, np.uint32(63)).astype(np.uint64)) - np.uint64(1)
    )
    place = np.minimum(start, np.uint32(63)).astype(np.uint64)
    field = np.where(start >= bits, np.uint64(0), ones << place)
    m.write(i.operands[0], ((target & ~field) | ((source << place) & field)).astype(UNSIGNED[bits]), mask)


@executes("popc", "clz", "brev")
def _bit_counts(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    values = m.read(i.operands[1], BITS[i.type])
    rows = np.unpackbits(values.astype(values.dtype.newbyteorder(">")).view(np.uint8).reshape(m.threads, -1), axis=1)
    if i.opcode == "brev":
        result = np.packbits(rows[:, ::-1], axis=1).view(values.dtype.newbyteorder(">")).reshape(-1).astype(values.dtype)
    elif i.opcode == "popc":
        result = rows.sum(1, dtype=np.uint32)
    else:
        result = np.where(rows.any(1), rows.argmax(1), rows.shape[1]).astype(np.uint32)
    m.write(i.operands[0], result, mask)


@executes("lop3")
def _any_logic(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """Bit k of the table is the result where the bits of a, b and c spell k."""
    a, b, c = (m.read(operand, 32) for operand in i.operands[1:4])
    table = int(i.operands[4], 0)
    result = np.zeros_like(a)
    for k in range(8):
        if table >> k & 1:
            result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    m.write(i.operands[0], result, mask)


@executes("prmt")
def _permute(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    m.write(i.operands[0], formats.permute_bytes(*(m.read(operand, 32) for operand in i.operands[1:])), mask)


# Moves and comparisons


@executes("mov", kinds="int float half")
def _move(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """Also packs a list of narrow registers into a wide one, and unpacks."""
    target, source = i.operands
    bits = BITS[i.type]
    if isinstance(source, tuple):
        part = bits // len(source)
        pieces = [m.read(each, part).astype(UNSIGNED[bits]) << UNSIGNED[bits](k * part) for k, each in enumerate(source)]
        m.write(target, np.bitwise_or.reduce(pieces), mask)
    elif isinstance(target, tuple):
        part = bits // len(target)
        for k, each in enumerate(target):
            m.write(each, (m.read(source, bits) >> UNSIGNED[bits](k * part)).astype(UNSIGNED[part]), mask)
    else:
        m.write(target, m.read(source, bits), mask)


@executes("selp", kinds="int float half")
def _select(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    bits = BITS[i.type]
    a, b = m.read(i.operands[1], bits), m.read(i.operands[2], bits)
    m.write(i.operands[0], np.where(m.read(i.operands[3], 1), a, b), mask)


COMPARISONS: dict[str, Binary] = {
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    **{"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal},
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
}
UNORDERED = {name + "u": name for name in ("eq", "ne", "lt", "le", "gt", "ge")}
COMBINATIONS: dict[str, Binary] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@executes("setp", kinds="int float", accepts=" ".join([*COMPARISONS, *UNORDERED, *COMBINATIONS, "ftz"]))
def _compare(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    name = i.modifiers[0]
    if i.type[0] == "f":
        a, b = (m.floats(operand, i.type, "ftz" in i.modifiers) for operand in i.operands[1:3])
        result = COMPARISONS[UNORDERED.get(name, name)](a, b)
        unordered = np.isnan(a) | np.isnan(b)
        if name in UNORDERED:
            result = result | unordered
        elif name == "ne":
            result = result & ~unordered
    else:
        result = COMPARISONS[name](m.integers(i.operands[1], i.type), m.integers(i.operands[2], i.type))
    targets = i.operands[0].split("|")
    for target, value in zip(targets, (result, ~result), strict=False):
        combined = COMBINATIONS[i.modifiers[1]](value, m.read(i.operands[3], 1)) if i.modifiers[1] in COMBINATIONS else value
        m.write(target, combined, mask)


# Floats

FLOAT_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "fma": formats.fma, "mad": formats.fma},
    **{"neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "copysign": lambda sign, size: np.copysign(size, sign)},
}


DIRECTED: dict[str, Callable[..., np.ndarray]] = {  # of float32 widened to float64
    **{"add": formats.add_to_odd, "sub": lambda a, b: formats.add_to_odd(a, -b), "mul": np.multiply},
    **{"fma": lambda a, b, c: formats.add_to_odd(a * b, c), "mad": lambda a, b, c: formats.add_to_odd(a * b, c)},
}


@executes(*FLOAT_OPERATIONS, kinds="float", accepts="rn rz rm rp ftz sat approx full")
def _float(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    flush = "ftz" in i.modifiers
    arguments = [m.floats(operand, i.type, flush) for operand in i.operands[1:]]
    mode = next((name for name in ("rz", "rm", "rp") if name in i.modifiers), None)
    if mode and (i.type != "f32" or i.opcode not in DIRECTED):
        raise NotImplementedError(f"PTX instruction {i}")
    if mode:
        result = formats.directed(DIRECTED[i.opcode](*(each.astype(np.float64) for each in arguments)), mode)
    elif i.opcode in ("fma", "mad") and i.type == "f32x2":
        result = formats.fma(*(each.reshape(-1) for each in arguments)).reshape(-1, 2)
    else:
        result = FLOAT_OPERATIONS[i.opcode](*arguments)
    if "sat" in i.modifiers:
        result = np.where(np.isnan(result), result.dtype.type(0), np.clip(result, 0, 1))
    m.write_floats(i.operands[0], result, mask, flush)


@executes("min", "max", kinds="float", accepts="ftz NaN")
def _float_extreme(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    flush = "ftz" in i.modifiers
    result, *others = (m.floats(operand, i.type, flush) for operand in i.operands[1:])
    for other in others:  # sm_100 takes three
        result = formats.extreme(result, other, i.opcode == "max", "NaN" in i.modifiers)
    m.write_floats(i.operands[0], result, mask)


@executes("add", "sub", "fma", kinds="half", accepts="rn")
def _mixed(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """``add.f32.bf16``: narrow arguments, float32 accumulator (sm_100); ``fma.bf16``: all narrow, rounded once."""
    if i.opcode == "fma" and i.type == "bf16" and "f32" not in i.modifiers:
        a, b, c = (m.floats(operand, i.type).astype(np.float64) for operand in i.operands[1:])
        m.write(i.operands[0], formats.to_bfloat16(formats.to_odd(formats.add_to_odd(a * b, c))), mask)
        return
    if "f32" not in i.modifiers:
        raise NotImplementedError(f"PTX instruction {i}")
    *narrow, accumulator = i.operands[1:]
    values = [m.floats(operand, i.type).astype(np.float32) for operand in narrow]
    m.write_floats(i.operands[0], FLOAT_OPERATIONS[i.opcode](*values, m.floats(accumulator, "f32")), mask)


TRUE_VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{"ex2": np.exp2, "lg2": np.log2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh},
    **{"rsqrt": lambda x: 1 / np.sqrt(x), "rcp": lambda x: 1 / x},
}


@executes(*TRUE_VALUES, kinds="float", accepts="approx ftz rn")
def _function(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    flush = "ftz" in i.modifiers
    values = m.floats(i.operands[1], i.type, flush)
    result = TRUE_VALUES[i.opcode](values.astype(np.float64)).astype(values.dtype)
    m.write_floats(i.operands[0], result, mask, flush)


# Conversions

TO_INTEGER = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


@executes("cvt", kinds="int float half", accepts="rn rna rzi rni rmi rpi ftz sat")
def _convert(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    to, source = (name for name in i.modifiers if name in BITS)
    if "sat" in i.modifiers and not (formats.kind(source) == "float" and formats.kind(to) == "int"):
        raise NotImplementedError(f"PTX instruction {i}")
    if to in ("bf16x2", "f16x2"):
        high, low = (_to_half(m.floats(operand, source), to[:-2]).astype(np.uint32) for operand in i.operands[1:])
        m.write(i.operands[0], (high << np.uint32(16)) | low, mask)
    elif to == "tf32":
        m.write(i.operands[0], formats.round_to_tf32(m.read(i.operands[1], 32)), mask)
    elif to in ("bf16", "f16"):
        values = m.floats(i.operands[1], source) if formats.kind(source) != "int" else m.integers(i.operands[1], source)
        m.write(i.operands[0], _to_half(values, to), mask)
    elif formats.kind(to) == "float":
        _convert_to_float(m, i, mask, to, source)
    else:
        _convert_to_integer(m, i, mask, to, source)


def _to_half(values: np.ndarray, name: str) -> np.ndarray:
    if name == "f16":
        return values.astype(np.float16).view(np.uint16)
    if values.dtype not in (np.float32, np.float16):
        raise NotImplementedError(f"PTX conversion of {values.dtype} to bf16")
    return formats.to_bfloat16(values)


def _convert_to_float(m: Machine, i: Instruction, mask: np.ndarray, to: str, source: str) -> None:
    flush = "ftz" in i.modifiers
    whole = next((TO_INTEGER[name] for name in i.modifiers if name in TO_INTEGER), None)
    values = m.integers(i.operands[1], source) if formats.kind(source) == "int" else m.floats(i.operands[1], source, flush)
    m.write_floats(i.operands[0], (whole(values) if whole else values).astype(FLOAT[to]), mask, flush)


def _convert_to_integer(m: Machine, i: Instruction, mask: np.ndarray, to: str, source: str) -> None:
    """Floats saturate and NaN becomes 0; integers keep their low bits or are extended by their sign."""
    bits, dtype = BITS[to], (SIGNED if to[0] == "s" else UNSIGNED)[BITS[to]]
    if formats.kind(source) == "int":
        m.write(i.operands[0], same_bits(m.integers(i.operands[1], source).astype(dtype)), mask, signed=to[0] == "s")
        return
    whole = TO_INTEGER[next(name for name in i.modifiers if name in ROUNDINGS)]
    values = whole(m.floats(i.operands[1], source, "ftz" in i.modifiers).astype(np.float64))
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    inside = np.where((values >= least) & (values < 2.0 ** (bits - (to[0] == "s"))), values, 0).astype(dtype)
    result = np.where(values >= 2.0 ** (bits - (to[0] == "s")), dtype(most), np.where(values < least, dtype(least), inside))
    m.write(i.operands[0], same_bits(result), mask, signed=to[0] == "s")
