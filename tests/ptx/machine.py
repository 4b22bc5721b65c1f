"""Registers, operands and the order of execution of all threads of a launch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from ptx.errors import SimulationError
from ptx.formats import BITS, CANONICAL_NAN, FLOAT, SIGNED, UNSIGNED, flush_subnormals, from_bfloat16, kind
from ptx.memory import UNWRITTEN, AsyncCopies, GlobalMemory, LocalMemory, SharedMemory
from ptx.parser import Instruction, Operand, Program

WARP = 32
SHARED_WINDOW, LOCAL_WINDOW, WINDOW = 0x1000_0000_0000, 0x2000_0000_0000, 0x1000_0000_0000  # of generic addresses
ADDRESS = re.compile(r"\[\s*([%\w$.@]+)\s*(?:\+\s*(-?\w+)\s*)?\]")
ROUNDINGS = ("rn", "rni", "rzi", "rmi", "rpi", "rna", "rz")

Handler = Callable[["Machine", Instruction, np.ndarray], None]
HANDLERS: dict[tuple[str, str], tuple[Handler, frozenset[str]]] = {}


def executes(*opcodes: str, kinds: str = "int", accepts: str = "") -> Callable[[Handler], Handler]:
    """Register the handler of ``opcodes`` for operand ``kinds``; any modifier that it does not accept is unsupported."""

    def register(handler: Handler) -> Handler:
        for opcode in opcodes:
            for each in kinds.split():
                HANDLERS[opcode, each] = handler, frozenset(accepts.split())
        return handler

    return register


def handler_of(instruction: Instruction) -> Handler:
    """The handler of an instruction.

    Raises:
        NotImplementedError: the simulator does not know the instruction or one of its modifiers.
    """
    handler, accepted = HANDLERS.get((instruction.opcode, kind(instruction.type)), (None, frozenset()))
    if handler is None or not accepted.issuperset(modifier for modifier in instruction.modifiers if modifier not in BITS):
        raise NotImplementedError(f"PTX instruction {instruction}")
    return handler


class Machine:
    """All threads of all blocks; a register is an array with one unsigned integer for each thread.

    Threads are padded to whole warps. Those that wait at the smallest program counter go first, until they meet others: the
    order that lets diverged threads join again.
    """

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        memory: GlobalMemory,
        parameters: Mapping[str, bytes],
        dynamic_shared: int,
    ) -> None:
        size, blocks = int(np.prod(block)), int(np.prod(grid))
        padded = -(-size // WARP) * WARP
        self.program, self.parameters, self.global_memory = program, parameters, memory
        self.block_size, self.threads = padded, padded * blocks
        lane = np.arange(self.threads)
        self.block_of, number = lane // padded, lane % padded
        self.exists = number < size
        self.warp_of = number // WARP
        granule = _narrowest_shared_access(program)
        shared_size = program.static_shared + dynamic_shared
        self.shared = SharedMemory(shared_size, blocks, self.block_of, self.warp_of, granule)
        self.local = LocalMemory(program.local_size, self.threads)
        self.copies = AsyncCopies(self.shared, self.threads)
        self.registers = {name: values.astype(np.uint32) for name, values in _special(number, self.block_of, block, grid)}
        self.constants: dict[tuple[str, int], np.ndarray] = {}
        self.issued: Counter[str] = Counter()

    def run(self, limit: int) -> None:
        """Execute until every thread has ended; ``limit`` instructions at most."""
        end = len(self.program.instructions)
        handlers: dict[int, Handler] = {}
        counter = np.where(self.exists, 0, end)
        with np.errstate(all="ignore"):
            while (here := int(counter.min())) < end:
                active = counter == here
                stop = int(counter[~active].min(initial=end))
                self._run_straight(here, stop, active, counter, handlers)
                if self.issued.total() > limit:
                    raise SimulationError(f"launch took more than {limit} instructions")

    def _run_straight(self, here: int, stop: int, active: np.ndarray, counter: np.ndarray, handlers: dict[int, Handler]) -> None:
        """Run the ``active`` threads from ``here`` to a branch or to the place where others wait."""
        end = len(self.program.instructions)
        while here < stop:
            instruction = self.program.instructions[here]
            mask = self.guard(instruction, active)
            self.issued[instruction.opcode] += 1
            here += 1
            if instruction.opcode in ("bra", "ret", "exit"):
                counter[active] = here
                counter[mask] = self.program.labels[instruction.operands[0]] if instruction.opcode == "bra" else end
                return
            if here - 1 not in handlers:
                handlers[here - 1] = handler_of(instruction)
            try:
                handlers[here - 1](self, instruction, mask)
            except SimulationError as error:
                raise type(error)(f"{error} at {instruction}") from error
        counter[active] = here

    def guard(self, instruction: Instruction, active: np.ndarray) -> np.ndarray:
        """The active threads whose predicate holds."""
        return active if instruction.predicate is None else active & self.read(instruction.predicate, 1)

    def read(self, operand: Operand, bits: int) -> np.ndarray:
        """Unsigned values of a register, an immediate or the address of a variable."""
        if not isinstance(operand, str):
            raise NotImplementedError(f"PTX operand {operand}")
        if operand.startswith("!"):
            return ~self.read(operand[1:], bits)
        if operand in self.program.registers or operand in self.registers:
            values = self.registers.get(operand)
            if values is None:
                values = self._unwritten(operand)
            return values if values.dtype == UNSIGNED[bits] else values.astype(UNSIGNED[bits])
        if (operand, bits) not in self.constants:
            self.constants[operand, bits] = np.full(self.threads, self._constant(operand) & (2**bits - 1), UNSIGNED[bits])
        return self.constants[operand, bits]

    def _constant(self, operand: str) -> int:
        if operand in self.program.symbols:
            return self.program.symbols[operand][1]
        if re.match(r"0[fFdD]", operand):
            return int(operand[2:], 16)
        try:
            return int(operand.rstrip("U"), 0)
        except ValueError:
            raise NotImplementedError(f"PTX operand {operand}") from None

    def _unwritten(self, register: str) -> np.ndarray:
        dtype = UNSIGNED[BITS[self.program.registers[register]]]
        return (
            np.full(self.threads * np.dtype(dtype).itemsize, UNWRITTEN, np.uint8).view(dtype)
            if dtype != np.bool_
            else ~self.exists
        )

    def signed(self, operand: Operand, bits: int) -> np.ndarray:
        return self.read(operand, bits).view(SIGNED[bits])

    def integers(self, operand: Operand, name: str) -> np.ndarray:
        """Values of an integer type, signed or unsigned as its name says."""
        return self.signed(operand, BITS[name]) if name[0] == "s" else self.read(operand, BITS[name])

    def floats(self, operand: Operand, name: str, flush: bool = False) -> np.ndarray:
        """Values of a floating-point type: bf16 as float32, f32x2 as (threads, 2)."""
        bits = self.read(operand, BITS[name])
        if name == "bf16":
            return from_bfloat16(bits)
        values = bits.view(FLOAT[name])
        if name == "f32x2":
            values = values.reshape(-1, 2)
        return flush_subnormals(values) if flush and values.dtype == np.float32 else values

    def write(self, operand: Operand, values: np.ndarray, mask: np.ndarray, signed: bool = False) -> None:
        """Set a register where ``mask`` holds; ``signed`` values are extended by their sign to its width."""
        if operand == "_":
            return
        if not isinstance(operand, str) or operand not in self.program.registers:
            raise NotImplementedError(f"PTX operand {operand}")
        dtype = UNSIGNED[BITS[self.program.registers[operand]]]
        if signed and np.dtype(dtype).itemsize > values.dtype.itemsize:
            values = values.view(SIGNED[8 * values.dtype.itemsize])
        values = values.astype(dtype, copy=False)
        if not mask.all():
            old = self.registers.get(operand)
            values = np.where(mask, values, self._unwritten(operand) if old is None else old)
        self.registers[operand] = values

    def write_floats(self, operand: Operand, values: np.ndarray, mask: np.ndarray, flush: bool = False) -> None:
        """Set a register to floats, two to a row for f32x2; float32 NaN in its canonical form."""
        values = np.ascontiguousarray(values)
        if flush and values.dtype == np.float32:
            values = flush_subnormals(values)
        bits = values.view(UNSIGNED[8 * values.dtype.itemsize])
        if values.dtype == np.float32 and np.isnan(values).any():
            bits = np.where(np.isnan(values), CANONICAL_NAN, bits)
        self.write(operand, bits.view(np.uint64).reshape(-1) if values.ndim == 2 else bits, mask)

    def address(self, operand: Operand) -> np.ndarray:
        """int64 addresses of ``[register + constant]``."""
        match = ADDRESS.fullmatch(operand) if isinstance(operand, str) else None
        if match is None:
            raise NotImplementedError(f"PTX address {operand}")
        base, offset = match.groups()
        wide = self.program.registers.get(base) in ("b64", "u64", "s64")
        values = self.read(base, 64).view(np.int64) if wide else self.read(base, 32).astype(np.int64)
        return values + int(offset, 0) if offset else values


def _special(
    number: np.ndarray, block_of: np.ndarray, block: tuple[int, int, int], grid: tuple[int, int, int]
) -> list[tuple[str, np.ndarray]]:
    named = [("%laneid", number % WARP), ("%warpid", number // WARP)]
    for values, sizes, index, extent in ((number, block, "%tid", "%ntid"), (block_of, grid, "%ctaid", "%nctaid")):
        stride = 1
        for axis, size in zip("xyz", sizes, strict=True):
            named.append((f"{index}.{axis}", values // stride % size))
            named.append((f"{extent}.{axis}", np.full_like(values, size)))
            stride *= size
    return named


def _narrowest_shared_access(program: Program) -> int:
    """1, 2 or 4 bytes: fine enough that two variables never share a word of the race check."""
    accesses = [each for each in program.instructions if each.opcode in ("ld", "st", "atom", "red") and each.type]
    possible = [BITS[each.type] // 8 for each in accesses if not {"global", "local", "param"} & set(each.modifiers)]
    return min([4, *possible])
