"""The public names: one list of them, imported where they are first used."""

import ast
import importlib
import importlib.util
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import fastscape as fs
from fastscape.ops._registry import OPERATORS

HEAVY = {"torch", "numpy", "scipy", "matplotlib", "rich", "jinja2"}


def run(code):
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_types_are_of_the_same_names_from_the_same_modules():
    stub = ast.parse(Path(fs.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    typed = {name.asname: (node.module, name.name) for node in stub.body for name in node.names}
    assert typed == {name: (module, name) for name, module in fs._HOMES.items()}


def test_no_public_name_is_also_a_module():
    """Importing the module would put it in the place of the name."""
    assert not [name for name in fs.__all__ if importlib.util.find_spec(f"fastscape.{name}") is not None]


@pytest.mark.parametrize("name", fs.__all__)
def test_a_name_is_that_of_its_module(name):
    value = getattr(fs, name)
    assert value is getattr(importlib.import_module(fs._HOMES[name]), name)
    assert getattr(value, "__module__", fs._HOMES[name]) == fs._HOMES[name], "defined elsewhere, and slower to import"


def test_all_names_are_listed_imported_by_a_star_and_documented():
    assert set(fs.__all__) < set(dir(fs))
    names = {}
    exec("from fastscape import *", names)
    assert set(fs.__all__) <= set(names)
    page = pydoc.plain(pydoc.render_doc(fs))
    assert all(name in page for name in fs.__all__ if name != "__version__")


@pytest.mark.parametrize(
    ("wrong", "words"), [("spectrm", "did you mean 'spectrum'"), ("MultiFractalResult", "'MultifractalResult'")]
)
def test_an_unknown_name_is_told_with_the_nearest(wrong, words):
    with pytest.raises(AttributeError, match=words):
        getattr(fs, wrong)
    with pytest.raises(ImportError, match=f"cannot import name '{wrong}'"):
        exec(f"from fastscape import {wrong}")
    with pytest.raises(AttributeError, match=r"has no attribute 'xyzzy'$"):
        fs.xyzzy  # noqa: B018
    assert not hasattr(fs, "__wrapped__")


def test_modules_of_the_package_are_there_without_an_import():
    assert run("import fastscape as fs; print(fs.numerics.__name__, fs.zoo.__name__)") == "fastscape.numerics fastscape.zoo\n"


@pytest.mark.parametrize("name", ["_native", "__main__", "probes.spectrum", ""])
def test_what_is_no_name_is_not_there(name):
    assert not hasattr(fs, name)


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, fastscape as fs; dir(fs); fs.__version__; hasattr(fs, 'x'); print({HEAVY} & set(sys.modules))"
    assert run(code) == "set()\n"


def test_the_first_use_of_a_name_draws_no_random_number_of_the_user():
    code = (
        "import random, fastscape as fs; random.seed(0); state = random.getstate()\n"
        "[getattr(fs, name) for name in fs.__all__]\n"
        "print(random.getstate() == state)"
    )
    assert run(code) == "True\n"


FIRST = """
import os, pkgutil, sys, torch, scipy.stats
for name in {names}:
    if not os.fork():
        try:
            pkgutil.resolve_name(name)
            missing = [op for op in {ops} if not hasattr(torch.ops.fastscape, op)]
            assert not missing, missing
        except BaseException as error:
            os.write(2, f"{{name}}: {{error!r}}\\n".encode())
            os._exit(1)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""


def test_what_needs_the_ops_registers_them_all():
    names = ["Directions", "losses", "responses", "status", "spectrum", "ops.perturb"]
    run(FIRST.format(names=[f"fastscape.{name}" for name in names], ops=sorted(OPERATORS)))


@pytest.mark.slow
def test_every_module_can_be_the_first():
    root = Path(fs.__file__).parents[1]
    files = [path.relative_to(root).with_suffix("") for path in sorted(root.glob("fastscape/**/*.py")) if path.stem != "__main__"]
    run(FIRST.format(names=[".".join(file.parts).removesuffix(".__init__") for file in files], ops=[]))
