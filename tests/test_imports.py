"""Imports go one way: between layers, between questions, and between the files of each; those for types alone count too."""

import ast
import re
import sys
from pathlib import Path

import pytest

import fastscape

ROOT = Path(fastscape.__file__).parent
LAYERS = (
    "ops",
    "objective",
    "directions",
    "numerics",
    "runs",
    "evaluation",
    "differences",
    "response",
    "curvature",
    "reports",
    "probes",
    "study",
    "integrations",
    "cli",
)
BESIDE = {("curvature", "response"), ("reports", "runs")}  # of which the later one needs no earlier one
FOUNDATION = {
    *("_checks", "_clock", "_creation", "_deadline", "_files", "_generators", "_heap", "_interrupts", "_keeping", "_lock"),
    *("_renamed", "_settings"),
    *("_state", "_version", "_warnings"),
}
COMPOSITE = {"signature", "tracking"}  # questions that are made of others
SHARED = {"spectrum": {"slices", "temperature"}}  # whose eigenvectors and eigenvalues others show

FILES = {
    ".".join(("fastscape", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imports(path):
    """Modules of the package that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastscape":
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in FILES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "fastscape")


GRAPH = {module: sorted(set(imports(path)) - {module}) for module, path in FILES.items() if module != "fastscape"}


def layer(module):
    return module.split(".")[1] if "." in module else ""


def question(module):
    parts = module.split(".")
    return parts[2] if parts[1:2] == ["probes"] and len(parts) > 3 else ""


@pytest.mark.parametrize("module", GRAPH)
def test_imports_go_one_way(module):
    own = layer(module)
    for wanted in GRAPH[module]:
        other = layer(wanted)
        if own in FOUNDATION:
            assert other in FOUNDATION, f"{module} is below the layers and imports {wanted}"
        elif own in LAYERS and other in LAYERS:
            assert LAYERS.index(other) <= LAYERS.index(own), f"{module} imports the later layer of {wanted}"
            assert (own, other) not in BESIDE, f"{module} imports {wanted}, beside which it stands"
        if own in LAYERS:
            assert other != "zoo" or own in ("study", "cli"), f"{module} must not need the zoo"
            assert own == "cli" or other, f"{module} imports the whole package"


@pytest.mark.parametrize("module", [module for module in GRAPH if question(module)])
def test_a_question_needs_no_other(module):
    own = question(module)
    for other in filter(None, map(question, GRAPH[module])):
        allowed = own == other or own in COMPOSITE or own in SHARED.get(other, set())
        assert allowed, f"{module} needs the question {other!r}: share it through numerics, evaluation or curvature"


@pytest.mark.parametrize("module", [module for module in GRAPH if question(module)])
def test_a_result_reaches_its_view_by_registration(module):
    name = module.rsplit(".", 1)[1]
    if name.endswith("result"):
        shown = {wanted for wanted in GRAPH[module] if wanted.rsplit(".", 1)[1].endswith(("view", "figures", "words"))}
        assert not shown, f"{module} holds data and imports {shown}"
    elif name.endswith("view"):
        assert not any(wanted.endswith((".probe", ".run")) and question(wanted) for wanted in GRAPH[module])


def circles(graph):
    """Strongly connected components of more than one file."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            position = stack.index(node)
            found.append(sorted(stack[position:]))
            del stack[position:]

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 4000))
    for node in graph:
        if node not in index:
            visit(node)
    return [group for group in found if len(group) > 1]


def test_a_circle_is_seen():
    assert circles({"a": ["b"], "b": ["c", "d"], "c": ["a"], "d": []}) == [["a", "b", "c"]]


def test_no_files_import_each_other():
    assert not circles(GRAPH)


def test_an_objective_is_above_all_that_it_is_made_of():
    reached, pending = set(), ["fastscape.objective.objective"]
    while pending:
        module = pending.pop()
        if module not in reached:
            reached.add(module)
            pending += GRAPH.get(module, ())
    assert {layer(module) for module in reached} <= {"objective", *FOUNDATION}


SPECTRAL = {
    "diagonal",
    "factorisation",
    "gram_schmidt",
    "krylov",
    "lanczos",
    "trace",
}  # vectors of D numbers stay on their device


def test_the_mathematics_of_measures_needs_no_torch():
    """Everything from responses to estimates is usable on arrays that came from elsewhere."""
    mathematics = [
        path
        for path in (ROOT / "numerics").glob("*.py")
        if path.stem not in SPECTRAL
    ] + [
        ROOT / "probes" / "multifractal" / f"{name}.py"
        for name in (
            "analyse", "description", "bootstrap", "changes", "exponents", "flags", "headline", "influence", "lines", "moments",
            "scalars", "significance", "support", "trust",
        )
    ] + [ROOT / "probes" / "signature" / f"{name}.py" for name in ("association", "rules")]  # fmt: skip
    for path in mathematics:
        assert "torch" not in path.read_text().replace("torch.Tensor", ""), f"{path} mentions torch"


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_what_tests_import_from_the_package_is_there(path):
    """Looking for doctests skips a file that cannot be imported, and with it its tests."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastscape":
            if (file := FILES.get(node.module)) is None:
                continue  # the whole package, whose names are found when they are asked for
            defined = file.read_text()
            for name in (name.name for name in node.names):
                assert f"{node.module}.{name}" in FILES or re.search(rf"\b{name}\b", defined), f"{node.module} has no {name}"
