"""The layers import in one direction only."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fastscape

ROOT = Path(fastscape.__file__).parent
LAYERS = (
    "ops",
    "objective",
    "directions",
    "evaluation",
    "estimators",
    "runs",
    "reports",
    "probes",
    "integrations",
    "study",
    "cli",
)
FOUNDATION = {
    *(
        "_arguments",
        "_batches",
        "_checkpoints",
        "_checks",
        "_clock",
        "_criteria",
        "_definition",
        "_embedding",
        "_examination",
        "_interrupts",
        "_norms",
        "_private",
        "_replica",
        "_state",
        "_statistics",
        "_structures",
        "_terms",
    ),
    "_version",
}  # below every layer


def layer(module):
    """Layer of ``fastscape.<part>...``, or None for what is outside the order."""
    part = module.split(".")[1] if module.count(".") else "__init__"
    return LAYERS.index(part) if part in LAYERS else None


def imports(path, *, types=False):
    """Names of fastscape modules that a file imports when it runs, and with ``types`` in type-checking blocks."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only and not types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastscape"):
            yield from (f"{node.module}.{name.name}" if node.module == "fastscape" else node.module for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("fastscape"))


FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = LAYERS.index(parts[0]) if parts[0] in LAYERS else None
    for module in imports(path):
        if module == "fastscape":  # whose names are imported later, from every layer
            assert parts[0] == "cli", f"{path} is below the command line and imports the public names"
            continue
        wanted = layer(module)
        if parts[0] in FOUNDATION:
            assert module.split(".")[1] in FOUNDATION, f"{path.name} is below the layers and imports {module}"
        elif own is not None:
            assert wanted is None or wanted <= own, f"{path} ({LAYERS[own]}) imports the later layer {module}"
            assert module.split(".")[1] != "zoo" or parts[0] in ("study", "cli"), f"{path} must not need the zoo"


def test_an_objective_is_above_all_that_it_is_made_of():
    files = {f"fastscape.{name}": ROOT / f"{name}.py" for name in FOUNDATION | {"objective"}}
    graph = {module: [name for name in imports(path, types=True) if name in files] for module, path in files.items()}
    assert not [module for module, names in graph.items() if "fastscape.objective.objective" in names]
    TopologicalSorter(graph).prepare()  # refuses circles


SPECTRAL = {"davidson.py", "gram_schmidt.py", "krylov.py", "lanczos.py", "trace.py"}  # vectors of D numbers stay on their device


def test_estimators_of_measures_need_no_torch():
    for path in (ROOT / "estimators").glob("*.py"):
        if path.name in SPECTRAL:
            assert all(
                module.startswith(("fastscape.estimators", "fastscape._checks", "fastscape.ops")) for module in imports(path)
            )
            continue
        assert "torch" not in path.read_text().replace("torch.Tensor", ""), f"{path.name} mentions torch"
        assert all(module.startswith(("fastscape.estimators", "fastscape._checks")) for module in imports(path)), path.name
