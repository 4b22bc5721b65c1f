"""Results of the landscape probes: saved, nested, printed and shown on one page."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastscape as fs
from fastscape.numerics.estimate import Estimate
from fastscape.reports import storage
from fastscape.reports.document import Document
from fastscape.reports.html import write_html
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of


@dataclass(frozen=True)
class Leaf(Document):
    kind = "test-leaf"
    name: str
    step: int | None
    values: NDArray[np.float64]
    mean: Estimate | None
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tree(Document):
    kind = "test-tree"
    name: str
    step: int | None
    parts: dict[str, Document]
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()


@section_of.register
def leaf_section(result: Leaf):
    return Section(
        f"Leaf {result.name}",
        f"the mean is {result.values.mean():.3g}.",
        (Quantity("mean", "1", "a < b & c"),),
        (Figure("A line", lambda ax: ax.plot(result.values), "values against index"),),
        (Grid("cells", ({"column": "1"},), {"column": "what it is"}),),
        result.notes,
        (("seed", "0"),),
    )


@section_of.register
def tree_section(result: Tree):
    return Section("Tree", "all parts.", children=tuple(part.section() for part in result.parts.values()))


for kind in ("test-leaf", "test-tree"):  # nobody else's, who may have a test between two of these
    storage.KINDS.pop(kind)


@pytest.fixture(autouse=True)
def _kinds_of_these_tests(monkeypatch):
    for made in (Leaf, Tree):
        monkeypatch.setitem(storage.KINDS, made.kind, made)


def leaf(name="a", notes=("beware",)):
    return Leaf(name, 3, np.array([1.0, np.nan, np.inf]), Estimate(1.0, 0.1, (0.8, 1.2), 5), {"seed": 0, "seconds": 1.5}, notes)


def test_a_saved_document_is_read_back_with_its_parts(tmp_path):
    tree = Tree("t", None, {"one": leaf(), "two": leaf("b", ())}, {"versions": {"torch": "x"}})
    again = fs.load(tree.save(tmp_path / "tree"))
    assert isinstance(again, Tree)
    assert isinstance(again.parts["one"], Leaf)
    assert again.parts["one"].mean == leaf().mean
    np.testing.assert_array_equal(again.parts["two"].values, leaf().values)
    assert again.parts["one"].notes == ("beware",)


def test_json_has_no_nan_and_says_what_was_found():
    content = json.loads(leaf().to_json())
    assert content["values"] == [1.0, None, None]
    assert content["flags"] == ["beware"]
    assert content["verdict"].startswith("the mean")


def test_tables_name_every_quantity_and_flag():
    text = str(leaf())
    for words in ("Leaf a", "a < b & c", "column", "! beware"):
        assert words in text


def test_a_page_has_definitions_on_hover_and_as_caption_and_needs_no_network(tmp_path):
    page = write_html(Tree("t", None, {"one": leaf(), "two": leaf("b", ())}, {"seed": 1}), tmp_path / "page.html").read_text()
    assert page.count('title="values against index"') == 2
    assert page.count("<figcaption>values against index") == 2
    assert "a &lt; b &amp; c" in page
    assert '<a href="#s1-leaf-a">' in page
    assert 'id="s1-leaf-a"' in page
    assert 'title="what it is"' in page
    outside = page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    assert "http" not in outside.replace("https://matplotlib.org/", "")
    assert "<script" not in page


def test_a_spectrum_beside_a_document_is_refused(tmp_path):
    with pytest.raises(TypeError, match="got a Leaf"):
        write_html(leaf(), tmp_path / "page.html", spectrum=object())


def test_wide_figures_and_wordy_columns_keep_a_width_that_can_be_read_on_a_phone():
    words = "at least four runs are needed, and one was left out"
    jinja2 = pytest.importorskip("jinja2")
    source = jinja2.Environment(loader=jinja2.PackageLoader("fastscape.reports"), autoescape=True).from_string(
        "{% from 'sections.j2' import named_grid, figures %}{{ named_grid(grid) }}{{ figures([figure]) }}"
    )
    figure = {"svg": "", "definition": "", "wide": True, "columns": 4}
    text = source.render(grid=Grid("", ({"p": "1", "note": words},), {}), figure=figure)
    assert 'class="wordy"' in text
    assert "--columns: 4" in text
