"""PTX text to instructions: one entry function, its parameters, registers, labels and memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ptx.formats import BITS

Operand = str | tuple[str, ...]
IGNORED_LINES = (".file", ".pragma", ".section", ".branchtargets", "@@DWARF")
ENTRY = r"\.entry\s+([\w$]+)"
HINT = re.compile(r"^(L1::|L2::|level::)")  # cache hints change no value


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; ``text`` is its PTX and ``place`` where it stands."""

    opcode: str
    modifiers: tuple[str, ...]
    type: str
    operands: tuple[Operand, ...]
    predicate: str | None
    text: str
    place: str

    def __str__(self) -> str:
        return f"`{self.text}` ({self.place})"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A kernel parameter of ``size`` bytes; ``type`` is empty for a structure."""

    name: str
    type: str
    size: int


@dataclass(slots=True)
class Program:
    """An entry function."""

    name: str
    parameters: list[Parameter]
    threads: tuple[int, int, int] | None  # .reqntid
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    symbols: dict[str, tuple[str, int]] = field(default_factory=dict)  # name -> (shared or local, offset)
    static_shared: int = 0
    local_size: int = 0


def parse(ptx: str, name: str) -> Program:
    """Parse the entry function ``name``.

    Raises:
        ValueError: no such entry.
    """
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), ptx, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    entry = re.search(rf"\.entry\s+{re.escape(name)}\s*(?:\((.*?)\))?([^{{]*)\{{", text, re.DOTALL)
    if entry is None:
        raise ValueError(f"name must be an entry of the PTX, got {name!r} of {re.findall(ENTRY, text)}")
    required = re.search(r"\.reqntid\s+([\d, ]+)", entry[2])
    threads = [int(count) for count in required[1].split(",")] if required else []
    program = Program(name, list(_parameters(entry[1] or "")), (*threads, 1, 1)[:3] if threads else None)
    body = text[entry.end() : _end_of_block(text, entry.end())]
    _lay_out_memory(program, text[: entry.start()] + body, body)
    _Body(program).read(body, text.count("\n", 0, entry.end()) + 1)
    return program


def _parameters(text: str) -> Iterator[Parameter]:
    for declaration in filter(None, (part.strip() for part in text.split(","))):
        array = re.search(r"\.b8\s+([\w$]+)\[(\d+)\]$", declaration)
        if array:
            yield Parameter(array[1], "", int(array[2]))
        else:
            words = declaration.split()
            yield Parameter(words[-1], words[1][1:], BITS[words[1][1:]] // 8)


def _end_of_block(text: str, start: int) -> int:
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return start + brace.start()
    raise ValueError("ptx must be whole, got a function without its closing brace")


def _lay_out_memory(program: Program, text: str, body: str) -> None:
    """Give every shared or local variable that the body names its offset; shared memory of open size comes last."""
    found = re.findall(r"\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?\s*;", text)
    for space, align, element, symbol, length in sorted(found, key=lambda item: item[4] == ""):
        if not re.search(rf"(?<![\w$]){re.escape(symbol)}(?![\w$])", body):
            continue
        used = program.static_shared if space == "shared" else program.local_size
        offset = -(-used // int(align or 1)) * int(align or 1)
        program.symbols[symbol] = (space, offset)
        end = offset + int(length or 0) * BITS[element] // 8
        if space == "shared":
            program.static_shared = end
        else:
            program.local_size = end


class _Body:
    """Reads statements; braces open scopes, whose registers may repeat the names of others."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.scopes: list[dict[str, str]] = [{}]
        self.source = ""

    def read(self, body: str, first_line: int) -> None:
        pending, begun = "", 0
        for number, line in enumerate(body.split("\n"), first_line):
            stripped = line.strip()
            if stripped.startswith(".loc"):
                self.source = ":".join(stripped.split()[1:3])
            if stripped.startswith((".loc", *IGNORED_LINES)):
                continue
            for piece in re.split(r"([;{}:](?!:)(?<!::))", line):
                if not pending.strip():
                    begun = number
                if piece == ";":
                    self.statement(pending.strip(), begun)
                    pending = ""
                elif piece == "{" and not pending.strip():
                    self.scopes.append({})
                elif piece == "}" and not pending.strip():
                    self.scopes.pop()
                elif piece == ":" and re.fullmatch(r"\s*[\w$]+\s*", pending):
                    self.program.labels[pending.strip()] = len(self.program.instructions)
                    pending = ""
                else:
                    pending += piece
            pending += " "

    def statement(self, text: str, line: int) -> None:
        text = re.sub(r"\s+", " ", text)
        if text.startswith(".reg"):
            self.declare(text)
        elif text and not text.startswith("."):
            place = f"line {line} of the PTX" + (f", source {self.source}" if self.source else "")
            self.program.instructions.append(self.instruction(text, place))

    def declare(self, text: str) -> None:
        _, kind, names = text.split(" ", 2)
        for name in (part.strip() for part in names.split(",")):
            family = re.fullmatch(r"(.+)<(\d+)>", name)
            for each in [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name]:
                own = each if len(self.scopes) == 1 else f"{each}@{len(self.program.registers)}"
                self.scopes[-1][each] = own
                self.program.registers[own] = kind[1:]

    def rename(self, text: str) -> str:
        if len(self.scopes) == 1:
            return text
        visible = {name: own for scope in self.scopes for name, own in scope.items()}
        return re.sub(r"%?[A-Za-z_$][\w$.]*", lambda match: visible.get(match[0], match[0]), text)

    def instruction(self, text: str, place: str) -> Instruction:
        match = re.fullmatch(r"(?:@(!?[%\w$]+) )?([\w.:]+) ?(.*)", text, re.DOTALL)
        if match is None:
            raise ValueError(f"ptx must be a list of instructions, got {text!r} at {place}")
        predicate, mnemonic, rest = match.groups()
        opcode, *modifiers = mnemonic.replace("shared::cta", "shared").split(".")
        modifiers = [modifier for modifier in modifiers if not HINT.match(modifier)]
        return Instruction(
            opcode,
            tuple(modifiers),
            modifiers[-1] if modifiers and modifiers[-1] in BITS else "",
            tuple(_operands(self.rename(rest))),
            self.rename(predicate) if predicate else None,
            text,
            place,
        )


def _operands(text: str) -> Iterator[Operand]:
    """Split at commas outside braces and brackets; a braced list is a tuple."""
    for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", text):
        part = part.strip()
        if part.startswith("{"):
            yield tuple(item.strip() for item in part[1:-1].split(","))
        elif part:
            yield part
