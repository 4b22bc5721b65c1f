"""Instructions that touch memory: loads, stores, atomics, asynchronous copies, barriers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ptx.errors import DivergenceError, SimulationError
from ptx.formats import BITS, SIGNED, UNSIGNED
from ptx.machine import LOCAL_WINDOW, SHARED_WINDOW, WINDOW, Machine, executes
from ptx.memory import Memory
from ptx.parser import Instruction, Operand

SPACES = "global shared local"
ORDERS = "volatile relaxed acquire release acq_rel weak gpu cta sys nc v2 v4 v8 L2"


def _listed(operand: Operand) -> tuple[str, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def _places(m: Machine, i: Instruction, operand: Operand, mask: np.ndarray) -> Iterator[tuple[Memory, np.ndarray, np.ndarray]]:
    """Memory, threads and their addresses; a generic address may lead to any memory."""
    address = m.address(operand)
    named = {"global": m.global_memory, "shared": m.shared, "local": m.local}
    for space in set(named) & set(i.modifiers):
        threads = np.nonzero(mask)[0]
        yield named[space], threads, address[threads]
        return
    in_shared = (address >= SHARED_WINDOW) & (address < SHARED_WINDOW + WINDOW)
    in_local = (address >= LOCAL_WINDOW) & (address < LOCAL_WINDOW + WINDOW)
    for memory, inside, base in (
        (m.shared, in_shared, SHARED_WINDOW),
        (m.local, in_local, LOCAL_WINDOW),
        (m.global_memory, ~(in_shared | in_local), 0),
    ):
        threads = np.nonzero(mask & inside)[0]
        if len(threads):
            yield memory, threads, address[threads] - base


@executes("ld", kinds="int float half", accepts=f"{SPACES} {ORDERS} param")
def _load(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    targets = _listed(i.operands[0])
    bits = BITS[i.type]
    if "param" in i.modifiers:
        values = _parameter(m, i.operands[1], bits // 8, len(targets))
        rows = np.broadcast_to(values, (m.threads, len(targets)))
    else:
        rows = np.zeros((m.threads, len(targets)), UNSIGNED[bits])
        for memory, threads, address in _places(m, i, i.operands[1], mask):
            rows[threads] = memory.load(threads, address, bits // 8, len(targets))
    for k, target in enumerate(targets):
        m.write(target, np.ascontiguousarray(rows[:, k]), mask, signed=i.type[0] == "s")


def _parameter(m: Machine, operand: Operand, width: int, count: int) -> np.ndarray:
    match = re.fullmatch(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+)\s*)?\]", str(operand))
    if match is None or match[1] not in m.parameters:
        raise NotImplementedError(f"PTX address {operand}")
    return np.frombuffer(m.parameters[match[1]], UNSIGNED[8 * width], count, int(match[2] or 0))


@executes("st", kinds="int float half", accepts=f"{SPACES} {ORDERS}")
def _store(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    values = np.stack([m.read(source, BITS[i.type]) for source in _listed(i.operands[1])], axis=1)
    for memory, threads, address in _places(m, i, i.operands[0], mask):
        memory.store(threads, address, values[threads])


@executes("cvta", accepts="to global shared local")
def _convert_address(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    base = SHARED_WINDOW if "shared" in i.modifiers else LOCAL_WINDOW if "local" in i.modifiers else 0
    address = m.read(i.operands[1], 64)
    m.write(i.operands[0], address - np.uint64(base) if "to" in i.modifiers else address + np.uint64(base), mask)


def _updated(name: str, type_: str, old: np.ndarray, new: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    """The value after an atomic operation; ``old``, ``new`` and ``other`` are bits."""
    bits = 8 * old.dtype.itemsize
    dtype = {"f": np.dtype(f"f{bits // 8}"), "s": SIGNED[bits]}.get(type_[0], UNSIGNED[bits])
    x, y = old.view(dtype), new.view(dtype)
    results = {
        "add": lambda: x + y,
        "min": lambda: np.minimum(x, y),
        "max": lambda: np.maximum(x, y),
        "and": lambda: x & y,
        "or": lambda: x | y,
        "xor": lambda: x ^ y,
        "exch": lambda: y,
        "cas": lambda: np.where(x == y, other, x),
        "inc": lambda: np.where(x >= y, dtype(0), x + dtype(1)),
        "dec": lambda: np.where((x == 0) | (x > y), y, x - dtype(1)),
    }
    return np.ascontiguousarray(results[name]()).view(UNSIGNED[bits])


ATOMICS = "add min max and or xor exch cas inc dec"


@executes("atom", "red", kinds="int float", accepts=f"global shared {ORDERS} {ATOMICS}")
def _atomic(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """In the order of threads, where a chip promises none."""
    targets = _listed(i.operands[0]) if i.opcode == "atom" else ()
    operand, *sources = i.operands[1:] if i.opcode == "atom" else i.operands
    name = next(each for each in i.modifiers if each in ATOMICS.split())
    bits = BITS[i.type]
    width = bits // 8
    news = [m.read(each, bits) for each in _listed(sources[0])]
    other = m.read(sources[1], bits) if name == "cas" else None
    olds = [np.zeros(m.threads, UNSIGNED[bits]) for _ in news]
    for memory, threads, address in _places(m, i, operand, mask):
        memory.require_alignment(address, width * len(news))
        for k, (old, new) in enumerate(zip(olds, news, strict=True)):

            def update(before: np.ndarray, which: np.ndarray, new: np.ndarray = new, who: np.ndarray = threads) -> np.ndarray:
                return _updated(name, i.type, before, new[who[which]], None if other is None else other[who[which]])

            old[threads] = memory.atomic(threads, address + k * width, width, update)
    for target, old in zip(targets, olds, strict=False):
        m.write(target, old, mask)


@executes("cp", kinds="none", accepts="async ca cg shared global commit_group wait_group wait_all")
def _copy(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    threads = np.nonzero(mask)[0]
    if "commit_group" in i.modifiers:
        m.copies.commit(threads)
    elif "wait_group" in i.modifiers:
        m.copies.wait(mask, int(i.operands[0], 0))
    elif "wait_all" in i.modifiers:
        m.copies.wait(mask, None)
    else:
        _start_copy(m, i, threads)


def _start_copy(m: Machine, i: Instruction, threads: np.ndarray) -> None:
    """Bytes past the source size arrive as zeros and are not read."""
    target, source, full = m.address(i.operands[0])[threads], m.address(i.operands[1])[threads], int(i.operands[2], 0)
    if len(i.operands) > 3 and m.program.registers.get(i.operands[3]) == "pred":
        raise NotImplementedError(f"PTX instruction {i}")
    size = m.read(i.operands[3], 32)[threads].astype(np.int64) if len(i.operands) > 3 else np.full(len(threads), full)
    if (size > full).any():
        raise SimulationError(f"asynchronous copy of {size.max()} bytes into {full}")
    data = np.zeros((len(threads), full), np.uint8)
    for length in np.unique(size[size > 0]):
        rows = size == length
        m.global_memory.require_alignment(source[rows], full)
        last = source[rows] + length - 1
        m.global_memory.locate(threads[rows], last, 1)  # source and target lie inside one array
        place = m.global_memory.locate(threads[rows], source[rows], 1)
        data[rows, :length] = m.global_memory.data[place[:, None] + np.arange(length)]
    m.copies.issue(threads, target, data)


@executes("bar", "barrier", kinds="none", accepts="cta sync aligned warp")
def _barrier(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """All threads of a block, or none of them: also those that have ended."""
    if "warp" in i.modifiers:
        return
    if len(i.operands) > 1 and int(i.operands[1], 0) != m.exists[: m.block_size].sum():
        raise NotImplementedError(f"PTX instruction {i}")
    arrived = (mask | ~m.exists).reshape(-1, m.block_size).all(1)
    if (arrived != mask.reshape(-1, m.block_size).any(1)).any():
        raise DivergenceError("barrier that only some threads of a block reach")
    m.shared.races.barrier(np.nonzero(arrived)[0])


@executes("membar", "fence", kinds="none", accepts="cta gl sys gpu sc acq_rel acquire release")
@executes("prefetch", "discard", kinds="none int", accepts="global L1 L2")
def _nothing(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    """Orders or hastens accesses that are simulated in order."""


@executes("createpolicy", accepts="fractional")
def _cache_policy(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    m.write(i.operands[0], np.zeros(m.threads, np.uint64), mask)


@executes("trap", kinds="none")
def _trap(m: Machine, i: Instruction, mask: np.ndarray) -> None:
    if mask.any():
        raise SimulationError("trap")
