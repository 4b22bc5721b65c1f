"""Instructions of whole warps: shuffles, votes, reductions, matrix loads and stores, matrix products."""

from __future__ import annotations

import re

import numpy as np

from ptx.errors import DivergenceError
from ptx.formats import extreme, from_bfloat16, truncate_to_tf32
from ptx.machine import WARP, Machine, executes
from ptx.parser import Instruction

LANE = np.arange(WARP)
ROW, COLUMN = LANE // 4, LANE % 4  # of a thread's elements in the fragments of mma and ldmatrix


def by_warp(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, WARP)


def whole_warps(m: Machine, mask: np.ndarray) -> np.ndarray:
    """The warps that execute.

    Raises:
        DivergenceError: some of their threads do not.
    """
    active, exists = by_warp(mask), by_warp(m.exists)
    some = active.any(1)
    if (active != exists)[some].any():
        raise DivergenceError("warp-wide instruction that only some threads of a warp reach")
    return np.nonzero(some)[0]


@executes("shfl", accepts="sync up down bfly idx")
def _shuffle(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    target, _, in_range = i.operands[0].partition("|")
    values, step, packed = (by_warp(m.read(operand, 32)) for operand in i.operands[1:4])
    step, clamp, segment = step.astype(np.int64) & 31, packed.astype(np.int64) & 31, packed.astype(np.int64) >> 8 & 31
    first = LANE & segment
    last = first | (clamp & ~segment)
    mode = next(name for name in i.modifiers if name in ("up", "down", "bfly", "idx"))
    source = {"up": LANE - step, "down": LANE + step, "bfly": LANE ^ step, "idx": first | (step & ~segment)}[mode]
    valid = source >= last if mode == "up" else source <= last
    source = np.where(valid, source, LANE)
    active = by_warp(mask)
    if (active & ~np.take_along_axis(active, source, 1)).any():
        raise DivergenceError("shuffle from a thread that does not take part")
    m.write(target, np.take_along_axis(values, source, 1).reshape(-1), mask)
    if in_range:
        m.write(in_range, valid.reshape(-1), mask)


@executes("vote", accepts="sync any all uni ballot")
def _vote(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    active = by_warp(mask)
    holds = by_warp(m.read(i.operands[1], 1))
    some, every = (holds & active).any(1), (holds | ~active).all(1)
    if "ballot" in i.modifiers:
        result = ((holds & active) << LANE.astype(np.uint32)).sum(1, dtype=np.uint32)
    else:
        result = some if "any" in i.modifiers else every if "all" in i.modifiers else every | ~some
    m.write(i.operands[0], np.repeat(result, WARP), mask)


@executes("redux", kinds="int float", accepts="sync add min max and or xor NaN")
def _reduce(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    whole_warps(m, mask & m.exists)
    name = i.modifiers[1]
    if i.type == "f32":
        values = by_warp(m.floats(i.operands[1], "f32"))
        result = values[:, 0]
        for lane in range(1, WARP):
            result = extreme(result, values[:, lane], name == "max", "NaN" in i.modifiers)
    else:
        reduce = {"add": np.add, "min": np.minimum, "max": np.maximum}
        reduce |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
        result = reduce[name].reduce(by_warp(m.integers(i.operands[1], i.type)), axis=1)
    m.write(i.operands[0], np.repeat(result.view(np.uint32), WARP), mask)


@executes("ldmatrix", "stmatrix", kinds="int", accepts="sync aligned m8n8 x1 x2 x4 trans shared")
def _matrix_access(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """8 x 8 matrices of 16 bits: lanes 8k to 8k + 7 hold the addresses of the rows of matrix k."""
    warps = whole_warps(m, mask)
    memory, registers = (i.operands[1], i.operands[0]) if i.opcode == "ldmatrix" else i.operands
    registers = registers if isinstance(registers, tuple) else (registers,)
    threads = (warps[:, None] * WARP + np.arange(8 * len(registers))).reshape(-1)
    address = m.address(memory)[threads]
    if i.opcode == "stmatrix":
        words = np.stack([by_warp(m.read(each, 32))[warps] for each in registers], 1)
        pairs = np.ascontiguousarray(words).view(np.uint16).reshape(len(warps), -1, 8, 8)
        rows = pairs.swapaxes(2, 3) if "trans" in i.modifiers else pairs
        m.shared.store(threads, address, np.ascontiguousarray(rows).reshape(-1, 8))
        return
    rows = m.shared.load(threads, address, 2, 8).reshape(len(warps), len(registers), 8, 8)
    rows = np.ascontiguousarray(rows.swapaxes(2, 3) if "trans" in i.modifiers else rows)
    words = rows.view(np.uint32).reshape(len(warps), len(registers), WARP)  # lane 4r + c holds columns 2c, 2c + 1 of row r
    for k, register in enumerate(registers):
        values = np.zeros((m.threads // WARP, WARP), np.uint32)
        values[warps] = words[:, k]
        m.write(register, values.reshape(-1), mask)


@executes("mma", kinds="float", accepts="sync aligned row col m16n8k4 m16n8k8 m16n8k16 m8n8k4")
def _matrix_product(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """D = A B + C, each element summed in float64 and rounded once; a chip rounds float32 sums more often."""
    warps = whole_warps(m, mask)
    rows, columns, depth = map(int, re.fullmatch(r"m(\d+)n(\d+)k(\d+)", i.modifiers[2]).groups())
    accumulator, kind = i.modifiers[-1], i.modifiers[-2]
    if (
        i.modifiers[-3] != kind
        or accumulator != ("f64" if kind == "f64" else "f32")
        or kind not in ("f64", "tf32", "bf16", "f16")
    ):
        raise NotImplementedError(f"PTX instruction {i}")
    a, b = (np.zeros((len(warps), *shape)) for shape in ((rows, depth), (depth, columns)))
    halves = rows // 8
    for k, values in enumerate(_elements(m, i.operands[1], kind, warps)):
        for part, value in enumerate(values):
            a[:, ROW + 8 * (k % halves), len(values) * (COLUMN + 4 * (k // halves)) + part] = value
    for k, values in enumerate(_elements(m, i.operands[2], kind, warps)):
        for part, value in enumerate(values):
            b[:, len(values) * (COLUMN + 4 * k) + part, ROW] = value
    product = a @ b
    for k, (target, source) in enumerate(zip(i.operands[0], i.operands[3], strict=True)):
        addend = by_warp(m.floats(source, accumulator))
        result = np.zeros_like(addend)
        result[warps] = product[:, ROW + 8 * (k // 2), 2 * COLUMN + k % 2] + addend[warps].astype(np.float64)
        m.write_floats(target, result.reshape(-1), mask)


def _elements(m: Machine, operand: tuple[str, ...], kind: str, warps: np.ndarray) -> list[list[np.ndarray]]:
    """Per register its elements (warps, lanes): two of 16 bits, or one."""
    listed = operand if isinstance(operand, tuple) else (operand,)
    if kind == "f64":
        return [[by_warp(m.floats(register, "f64"))[warps]] for register in listed]
    words = [by_warp(m.read(register, 32))[warps] for register in listed]
    if kind == "tf32":
        return [[truncate_to_tf32(word)] for word in words]
    parts = [[(word & np.uint32(0xFFFF)).astype(np.uint16), (word >> np.uint32(16)).astype(np.uint16)] for word in words]
    return [[from_bfloat16(part) if kind == "bf16" else part.view(np.float16) for part in pair] for pair in parts]
