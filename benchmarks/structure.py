"""How the package is built, in numbers: import circles, folders of a question, lines, budget loops, wide doors, late imports.

    python benchmarks/structure.py           # a table and the names behind it
    python benchmarks/structure.py --json    # the same for programs

Everything is read from the source by ``ast``, but for the last rows, which ask ``sys.modules`` of a new process after the
command line has shown its help. No clock is read. The rules:

- An import is that of a file by a file, wherever it stands: under ``TYPE_CHECKING`` and inside functions too. ``from a import b``
  is an import of the file ``a/b.py`` where there is one, else of ``a``. The packages that Python runs on the way do not count. A
  circle is a set of files that reach each other (a strongly connected component).
- A file belongs to a question where a folder or the name of the file holds one of its words (``QUESTIONS``); files under
  ``probes/<question>/`` belong to that one alone. A file that only files of the question import belongs to it as well, whatever
  its name, unless the whole package shares its folder (``SHARED``). What several questions use belongs to none, and pages and
  tables that hold several are not counted: the figure is a lower bound before they are divided.
- A loop that works to a budget calls ``.admits(``; a partial result's error sets ``self.partial``.
- "Try, time, choose" is a file that takes differences of ``now()`` and picks by them: ``min(..., key=...)`` of seconds, or a
  comparison of two of them.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "fastscape"
QUESTIONS = {  # names of files and folders; with a slash, paths of earlier versions whose names say less
    "barriers": ("barrier", "barriers", "connectivity*"),
    "slices": ("slice", "slices", "slice_*", "estimators/roughness"),
    "spectrum": ("spectrum", "spectral*", "spectrum_*", "estimators/density", "estimators/stability", "probes/stability"),
    "sharpness": ("sharpness*",),
    "critical": ("critical",),
    "diagonal": ("diagonal",),
    "temperature": ("temperature", "dynamics", "evaluation/sample_gradients"),
    "multifractal": ("multifractal", "cli/probe", "probes/session", "runs/settings", "reports/result", "reports/figures"),
    "signature": ("signature*", "several", "reports/comparison", "reports/probe", "estimators/rules", "estimators/association"),
    "tracking": ("tracker", "tracking*", "track_record", "difficulty", "runs/schedule", "runs/record"),
    "bench": ("bench*",),
    "doctor": ("doctor*",),
}
SHARED = ("ops",)
SPEED = re.compile(r"seconds|times|took")
MANY, LONG_CLASS, LONG_FILE = 8, 250, 450
HEAVY = ("torch", "scipy.stats", "numpy", "matplotlib", "triton")
SHOWN = ("--help", "--version")


@dataclass
class File:
    """One file of the package.

    Attributes:
        path: relative to the package.
        module: its dotted name.
        text: its source.
    """

    path: Path
    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.text)

    @property
    def lines(self) -> int:
        """How many there are."""
        return self.text.count("\n")

    @property
    def name(self) -> str:
        """For tables."""
        return self.path.as_posix()


@dataclass
class Row:
    """One line of the table.

    Attributes:
        title: what is counted.
        value: how many.
        names: what was counted.
    """

    title: str
    value: Any
    names: list[str] = field(default_factory=list)


def files(root: Path) -> dict[str, File]:
    """Files of the package that git tracks, by module."""
    listed = subprocess.run(["git", "ls-files", f"{PACKAGE}/*.py"], cwd=root, check=True, capture_output=True, text=True)
    found = {}
    for line in listed.stdout.splitlines():
        path = Path(line)
        if (root / path).is_file():
            parts = path.with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = (root / path).read_text(encoding="utf-8")
            found[module] = File(path.relative_to(PACKAGE), module, text)
    return found


# ---------------------------------------------------------------------- imports


@dataclass(frozen=True)
class Import:
    """That one file imports another, and where: at its ``"top"``, for ``"types"`` or in a ``"function"``."""

    source: str
    target: str
    where: str


def imports(package: Mapping[str, File]) -> list[Import]:
    """Every import of a file of the package by another."""
    return [Import(file.module, target, where) for file in package.values() for target, where in _imports(file, package)]


def _imports(file: File, package: Mapping[str, File]) -> Iterator[tuple[str, str]]:
    def walk(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            inside = where
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inside = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inside = "types"
            elif isinstance(child, ast.Import):
                yield from ((name.name, where) for name in child.names if name.name in package)
            elif isinstance(child, ast.ImportFrom):
                yield from ((target, where) for target in _targets(child, file, package))
            yield from walk(child, inside)

    yield from dict.fromkeys((target, where) for target, where in walk(file.tree, "top") if target != file.module)


def _targets(node: ast.ImportFrom, file: File, package: Mapping[str, File]) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        own = file.module.split(".") + ["__init__"] * (file.path.name == "__init__.py")
        base = ".".join([*own[: -node.level], *filter(None, [base])])
    for name in node.names:
        inner = f"{base}.{name.name}"
        if inner in package or base in package:
            yield inner if inner in package else base


def circles(edges: Iterable[Import]) -> list[list[str]]:
    """Strongly connected components of more than one file, the largest first (Tarjan)."""
    graph: dict[str, list[str]] = {}
    for edge in edges:
        graph.setdefault(edge.source, []).append(edge.target)
        graph.setdefault(edge.target, [])
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            members = [stack.pop()]
            while members[-1] != node:
                members.append(stack.pop())
            found.append(sorted(members))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return sorted((members for members in found if len(members) > 1), key=lambda members: (-len(members), members))


# ---------------------------------------------------------------------- questions


def question_of(path: Path) -> str | None:
    """The question that the names of a file and its folders tell."""
    parts = path.with_suffix("").parts
    if len(parts) > 2 and parts[0] == "probes" and parts[1] in QUESTIONS:
        return parts[1]
    for question, words in QUESTIONS.items():
        if any(fnmatchcase("/".join(parts), word) or any(fnmatchcase(part, word) for part in parts) for word in words):
            return question
    return None


def belonging(package: Mapping[str, File], edges: Iterable[Import]) -> dict[str, set[str]]:
    """Modules of every question: by name, and those that only its files import."""
    importers: dict[str, set[str]] = {}
    for edge in edges:
        importers.setdefault(edge.target, set()).add(edge.source)
    found: dict[str, set[str]] = {question: set() for question in QUESTIONS}
    for module, file in package.items():
        question = question_of(file.path)
        if question is not None:
            found[question].add(module)
    named = set().union(*found.values())
    for members in found.values():
        while True:
            more = {
                module
                for module, by in importers.items()
                if module not in named | members and by <= members and not _shared(package[module].path)
            }
            if not more:
                break
            members |= more
    return found


def _shared(path: Path) -> bool:
    return path.parts[0] in SHARED or path.name == "__init__.py"


# ---------------------------------------------------------------------- what is written in a file


def calls(file: File, attribute: str) -> int:
    """Calls ``x.attribute(...)``."""
    nodes = ast.walk(file.tree)
    return sum(isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == attribute for n in nodes)


def classes(file: File) -> list[ast.ClassDef]:
    """All of a file."""
    return [node for node in ast.walk(file.tree) if isinstance(node, ast.ClassDef)]


def holds_partial(node: ast.ClassDef) -> bool:
    """Whether a class is an exception that keeps a partial result."""
    is_error = any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    sets = (target for part in ast.walk(node) if isinstance(part, ast.Assign) for target in part.targets)
    return is_error and any(isinstance(target, ast.Attribute) and target.attr == "partial" for target in sets)


def chooses(file: File) -> bool:
    """Whether a file times ways to compute and takes the fastest."""
    times = picks = False
    for node in ast.walk(file.tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and isinstance(node.left, ast.Call):
            times |= ast.unparse(node.left.func) == "now"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "min":
            picks |= any(key.arg == "key" and SPEED.search(ast.unparse(key.value)) is not None for key in node.keywords)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Lt, ast.Gt)):
            sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
            picks |= all(SPEED.search(side) or "loop" in side for side in sides)
    return times and picks


# ---------------------------------------------------------------------- public names


def public(package: Mapping[str, File]) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Definitions of the public functions and classes."""
    found = {}
    for name, module in _public_names(package[PACKAGE]):
        definition = _definition(name, module, package) or _anywhere(name, package)
        if definition is not None:
            found[name] = definition
    return found


def _public_names(file: File) -> list[tuple[str, str]]:
    """Those of ``__all__``, or of the table of names by module that it is made from, with where to look for them."""
    for node in file.tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in ("__all__", "_NAMES") for t in node.targets):
            table = ast.literal_eval(node.value)
            modules = table if isinstance(table, dict) else {PACKAGE: " ".join(table)}
            return [(name, module) for module, names in modules.items() for name in names.split()]
    return []


def _definition(name: str, module: str, package: Mapping[str, File]) -> ast.FunctionDef | ast.ClassDef | None:
    """Follow the imports of a name to where it is defined."""
    for node in package[module].tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                base = node.module or ""
                if (alias.asname or alias.name) == name and base in package and f"{base}.{alias.name}" not in package:
                    return _definition(alias.name, base, package)
                if (alias.asname or alias.name) == name and base in package and base != module:
                    return _definition(alias.name, base, package)
    return None


def _anywhere(name: str, package: Mapping[str, File]) -> ast.FunctionDef | ast.ClassDef | None:
    """The definition of a name that is imported when it is asked for: the only one outside the command line."""
    found = [
        node
        for file in package.values()
        if file.path.parts[0] != "cli"
        for node in file.tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name
    ]
    return found[0] if len(found) == 1 else None


def parameters(node: ast.FunctionDef | ast.ClassDef) -> int:
    """Of a function, or of the ``__init__`` that a class writes."""
    if isinstance(node, ast.ClassDef):
        made = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
        return 0 if made is None else parameters(made) - 1
    given = node.args
    return len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)


# ---------------------------------------------------------------------- the command line


def loaded(argument: str, root: Path) -> dict[str, Any]:
    """Which heavy modules the command line has imported when it has answered, and how many in all."""
    program = (
        "import contextlib, io, json, sys\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    from {PACKAGE}.cli import main\n"
        f"    main(['{argument}'], prog_name='{PACKAGE}')\n"
        f"print(json.dumps([[name for name in {HEAVY!r} if name in sys.modules], len(sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, check=True, capture_output=True, text=True)
    heavy, count = json.loads(done.stdout.splitlines()[-1])
    return {"heavy": heavy, "modules": count}


# ---------------------------------------------------------------------- the table


def table(root: Path = ROOT) -> list[Row]:
    """Every row."""
    package = files(root)
    edges = imports(package)
    rows = [Row("lines of Python", sum(file.lines for file in package.values())), Row("files", len(package))]
    rows += [*_circles(package, edges), *_questions(package, edges), *_loops(package), *_sizes(package)]
    for argument in SHOWN:
        answer = loaded(argument, root)
        rows.append(Row(f"modules imported by {PACKAGE} {argument}", answer["modules"]))
        rows.append(Row(f"heavy ones among them ({', '.join(HEAVY)})", len(answer["heavy"]), answer["heavy"]))
    return rows


def _circles(package: Mapping[str, File], edges: list[Import]) -> Iterator[Row]:
    def short(module: str) -> str:
        return package[module].name

    found = circles(edges)
    yield Row("import circles", len(found), [f"{len(circle)}: {', '.join(map(short, circle))}" for circle in found])
    at_run = circles([edge for edge in edges if edge.where != "types"])
    yield Row("import circles without TYPE_CHECKING", len(at_run), [", ".join(map(short, circle)) for circle in at_run])
    apart = {module: index for index, circle in enumerate(found) for module in circle}
    inside = [edge for edge in edges if edge.source in apart and apart[edge.source] == apart.get(edge.target)]
    odd = [f"{short(edge.source)} -> {short(edge.target)} ({edge.where})" for edge in inside if edge.where != "top"]
    yield Row("files in circles", len(apart))
    yield Row("imports in circles for types or in functions", len(odd), odd)
    late = [f"{short(edge.source)} -> {short(edge.target)}" for edge in edges if edge.where == "function"]
    yield Row("imports inside functions", len(late), late)


def _questions(package: Mapping[str, File], edges: list[Import]) -> Iterator[Row]:
    for question, modules in belonging(package, edges).items():
        folders: dict[str, list[str]] = {}
        for module in sorted(modules):
            path = package[module].path
            folders.setdefault(path.parent.as_posix(), []).append(path.name)
        yield Row(
            f"folders of {question}", len(folders), [f"{folder}: {', '.join(inside)}" for folder, inside in folders.items()]
        )


def _loops(package: Mapping[str, File]) -> Iterator[Row]:
    admitting = {file.name: calls(file, "admits") for file in package.values()}
    asked = {name: count for name, count in admitting.items() if count}
    yield Row("calls of .admits(", sum(asked.values()))
    yield Row("files with them", len(asked), [f"{name} ({count})" for name, count in asked.items()])
    stopped = [file.name for file in package.values() if "KeyboardInterrupt" in file.text]
    yield Row("files that mention KeyboardInterrupt", len(stopped), stopped)
    kept = [f"{file.name}: {node.name}" for file in package.values() for node in classes(file) if holds_partial(node)]
    yield Row("error classes of partial results", len(kept), kept)
    signals = [f"{file.name}: {node.name}" for file in package.values() for node in classes(file) if "Deadline" in node.name]
    yield Row("Deadline classes", len(signals), signals)
    choosing = [file.name for file in package.values() if chooses(file)]
    yield Row('files that "try, time, choose"', len(choosing), choosing)


def _sizes(package: Mapping[str, File]) -> Iterator[Row]:
    counts = {name: (node, parameters(node)) for name, node in public(package).items()}
    for kind, what in ((ast.FunctionDef, "functions"), (ast.ClassDef, "classes")):
        wide = {name: count for name, (node, count) in counts.items() if isinstance(node, kind) and count > MANY}
        names = [f"{name} ({count})" for name, count in sorted(wide.items(), key=lambda item: -item[1])]
        yield Row(f"public {what} of more than {MANY} parameters", len(wide), names)
    spans = {f"{file.name}: {node.name}": _length(node) for file in package.values() for node in classes(file)}
    big = {name: length for name, length in spans.items() if length > LONG_CLASS}
    yield Row(f"classes above {LONG_CLASS} lines", len(big), _sized(big))
    long = {file.name: file.lines for file in package.values() if file.lines > LONG_FILE}
    yield Row(f"files above {LONG_FILE} lines", len(long), _sized(long))


def _length(node: ast.ClassDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def _sized(sizes: Mapping[str, int]) -> list[str]:
    return [f"{name} ({size})" for name, size in sorted(sizes.items(), key=lambda item: -item[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    options = parser.parse_args()
    rows = table()
    if options.json:
        print(json.dumps([vars(row) for row in rows], indent=1))
        return
    width = max(len(row.title) for row in rows)
    for row in rows:
        print(f"{row.title:{width}}  {row.value:>6}")
    for row in rows:
        if row.names:
            print(f"\n{row.title}:")
            print("\n".join(f"    {name}" for name in row.names))


if __name__ == "__main__":
    main()
