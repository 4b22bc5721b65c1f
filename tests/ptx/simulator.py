"""Run a compiled kernel on NumPy arrays, without a GPU.

All threads of all blocks execute together, an instruction at a time. Arithmetic is that of the chip, bit for bit, but for
the approximate instructions (``ptx.arithmetic``) and the order of sums inside a matrix product (``ptx.collective``). Reads and
writes outside the arrays, misaligned accesses, barriers that not all threads reach, and races in shared memory are errors
that name the instruction. Instructions of sm_90 and later that work in the background (wgmma, TMA, mbarrier) are not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ptx import access, arithmetic, collective  # noqa: F401 (they register their instructions)
from ptx.errors import DivergenceError, MisalignedError, OutOfBoundsError, RaceError, SimulationError
from ptx.machine import WARP, Machine
from ptx.memory import GlobalMemory
from ptx.parser import Parameter, Program, parse

__all__ = [
    "DivergenceError",
    "MisalignedError",
    "OutOfBoundsError",
    "Pointers",
    "RaceError",
    "Result",
    "SimulationError",
    "launch",
]


class Executable(Protocol):
    """What a launch needs to know of a kernel; ``ptx.aot.Compiled`` provides it."""

    name: str
    ptx: str
    num_warps: int | None
    shared: int
    hidden: int


@dataclass(frozen=True)
class Pointers:
    """A device array of int64 addresses, one for each array; None is the null pointer.

    ``offsets``: bytes to add to the addresses, as of slices that are addressed as if the whole were there.
    """

    arrays: Sequence[np.ndarray | None]
    offsets: Sequence[int] = ()


@dataclass(frozen=True)
class Result:
    """Arrays after a launch and what it executed.

    Attributes:
        arrays: for each argument that is an array its contents, for each `Pointers` the list of its arrays' contents.
        steps: instructions issued, each to all threads that were there.
        issued: the same by opcode.
    """

    arrays: list[np.ndarray | list[np.ndarray | None]]
    steps: int
    issued: Counter[str]


Argument = np.ndarray | Pointers | int | float | np.generic


def launch(
    compiled: Executable,
    grid: int | Sequence[int],
    args: Sequence[Argument],
    *,
    block: int | Sequence[int] | None = None,
    dynamic_shared: int | None = None,
    limit: int = 1_000_000,
) -> Result:
    """Execute a kernel for every block of ``grid``.

    Args:
        compiled: the kernel. Its PTX may have been altered: ``dataclasses.replace(compiled, ptx=compiled.ptx.replace(...))``.
        grid: up to three numbers of blocks.
        args: arrays are copied to the device, the same array passed twice once; bfloat16 as uint16. Scalars take the size of
            their parameter, Python floats as float32 or float64.
        block: up to three numbers of threads; a Triton kernel knows its own.
        dynamic_shared: bytes of shared memory beyond the static; a Triton kernel knows its own.
        limit: instructions after which a launch counts as endless.

    Raises:
        ValueError: arguments that do not fit the parameters, or no ``block``.
        NotImplementedError: an instruction that the simulator does not know; the message names it.
        SimulationError: an error of the kernel, by its subclass; `OutOfBoundsError` is also a MemoryError.
    """
    program = parse(compiled.ptx, compiled.name)
    tables = {id(arg): np.zeros(len(arg.arrays), np.int64) for arg in args if isinstance(arg, Pointers)}
    memory = GlobalMemory(list(_all_arrays(args, tables)))
    for arg in args:
        if isinstance(arg, Pointers):
            addresses = [0 if array is None else memory.address(array) for array in arg.arrays]
            shifts = np.array(arg.offsets or [0] * len(addresses), np.int64)
            memory.write(tables[id(arg)], np.array(addresses, np.int64) + shifts)
    values = [_value(arg, memory, tables) for arg in args] + [0] * compiled.hidden
    if len(values) != len(program.parameters):
        raise ValueError(f"args must be {len(program.parameters) - compiled.hidden} for {program.name}, got {len(args)}")
    parameters = {p.name: _encode(p, value) for p, value in zip(program.parameters, values, strict=True)}
    if dynamic_shared is None:
        dynamic_shared = max(compiled.shared - program.static_shared, 0)
    shape = _block(program, compiled, block)
    machine = Machine(program, _three(grid), shape, memory, parameters, dynamic_shared)
    machine.run(limit)
    return Result([*_results(args, memory)], machine.issued.total(), machine.issued)


def _all_arrays(args: Sequence[Argument], tables: dict[int, np.ndarray]) -> list[np.ndarray]:
    arrays = []
    for arg in args:
        if isinstance(arg, np.ndarray):
            arrays.append(arg)
        elif isinstance(arg, Pointers):
            arrays += [array for array in arg.arrays if array is not None] + [tables[id(arg)]]
    return arrays


def _results(args: Sequence[Argument], memory: GlobalMemory) -> list[np.ndarray | list[np.ndarray | None]]:
    results: list[np.ndarray | list[np.ndarray | None]] = []
    for arg in args:
        if isinstance(arg, np.ndarray):
            results.append(memory.read(arg))
        elif isinstance(arg, Pointers):
            results.append([None if array is None else memory.read(array) for array in arg.arrays])
    return results


def _value(arg: Argument, memory: GlobalMemory, tables: dict[int, np.ndarray]) -> int | float | np.generic:
    if isinstance(arg, Pointers):
        return memory.address(tables[id(arg)])
    return memory.address(arg) if isinstance(arg, np.ndarray) else arg


def _encode(parameter: Parameter, value: int | float | np.generic) -> bytes:
    """Bytes of a scalar argument."""
    if isinstance(value, float) and not isinstance(value, np.generic):
        value = {4: np.float32, 8: np.float64}[parameter.size](value)
    if isinstance(value, np.generic):
        if value.nbytes != parameter.size:
            raise ValueError(f"args must fit {parameter.name} of {parameter.size} bytes, got {value!r}")
        return value.tobytes()
    if not -(2 ** (8 * parameter.size - 1)) <= value < 2 ** (8 * parameter.size):
        raise ValueError(f"args must fit {parameter.name} of {parameter.size} bytes, got {value}")
    return (int(value) % 2 ** (8 * parameter.size)).to_bytes(parameter.size, "little")


def _three(sizes: int | Sequence[int]) -> tuple[int, int, int]:
    listed = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return (*listed, 1, 1, 1)[:3]


def _block(program: Program, compiled: Executable, block: int | Sequence[int] | None) -> tuple[int, int, int]:
    known = program.threads or (_three(compiled.num_warps * WARP) if compiled.num_warps else None)
    if block is None and known is None:
        raise ValueError(f"block must be given: the PTX of {program.name} does not fix its threads")
    if block is not None and known is not None and _three(block) != known:
        raise ValueError(f"block must be {known} as {program.name} was compiled, got {_three(block)}")
    return known or _three(block)
