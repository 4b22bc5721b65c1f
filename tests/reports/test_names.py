"""Names that a user gave, to files or parameters, hold anything: they are shown as they are, and no result is lost by one."""

import json
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure as Canvas
from reports.test_documents import leaf

import fastscape as fs
from fastscape.cli import main
from fastscape.reports import html
from fastscape.reports.axes import literal
from fastscape.reports.document import Document
from fastscape.reports.html import write_html
from fastscape.reports.numbers import readable
from fastscape.reports.sections import Figure, Section, section_of
from fastscape.reports.svg import svg

mpl.use("agg")
SAVED = Path(__file__).parent / "saved"
LONG = {"trajectory", "spectra", "multifractal"}  # pages of many figures, which their parts have as well
KINDS = [
    pytest.param(path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
    for path in sorted(SAVED.glob("*.npz"))
    if not path.stem.startswith("study")
]
NAME = "cost$ \\frac{$ <script>alert(1)</script> & \" ' [/bold] \udcff \x00 \x1b[31m 中 %s {0}"
NAMES = (
    "$",
    "$$",
    "a$b",
    "a$b$c",
    "$\\frac{$",
    "\\$",
    "$x^$",
    "_^{}\\",
    "\udcff",
    "\x00\x07\x1b",
    "中文 نص",
    "<b>&amp;",
    "[/red]",
    "a\nb\rc",
    "",
    " ",
    "x" * 5000,
    "$" * 5000,
)


def renamed(data, name):
    """A document in which every name of a user is another."""
    if isinstance(data, list):
        return [renamed(item, name) for item in data]
    if not isinstance(data, dict):
        return data
    found = {}
    for key, item in data.items():
        if key in ("name", "a", "b") and isinstance(item, str):
            found[key] = name
        elif key == "labels":
            found[key] = [f"{name}{index}" for index, _ in enumerate(item)]
        elif key == "layer_traces":
            found[key] = {f"{name}{index}": value for index, value in enumerate(item.values())}
        else:
            found[key] = renamed(item, name)
    return found


def load_renamed(kind, name, target):
    with np.load(SAVED / f"{kind}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    document = json.loads(str(arrays.pop("document")))
    if kind != "bench":  # whose units have names of its own
        document["result"] = renamed(document["result"], name)
    np.savez(target, document=np.array(json.dumps(document)), **arrays)
    return fs.load(target)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_result_is_shown_with_any_name(kind, tmp_path):
    found = load_renamed(kind, NAME, tmp_path / "a.npz")
    assert found.summary()
    json.loads(found.to_json())
    page = write_html(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "could not be drawn" not in page
    assert "<script" not in page
    assert readable(page) == page
    if found.section().figures and kind not in ("signature", "comparison", "probe"):
        found.plot()
        mpl.pyplot.close("all")
    fs.load(found.save(tmp_path / "again"))


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[:12] for name in NAMES])
def test_a_figure_shows_a_name_beside_a_formula_and_no_formula_in_it(name):
    shown = literal(name)
    assert len(shown.replace(r"\$", "$")) <= 61
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        def draw(axes):
            axes[0].plot([0, 1], label=f"{shown}: x")
            axes[0].set_title(f"$\\alpha_1$ {shown} $\\tau$")
            axes[0].set_xticks([0, 1], [shown, f"{shown} "])
            axes[0].legend()

        text = svg(1, 1, draw)
    assert readable(text) == text
    if name == "a$b$c":
        assert "a$b$c: x" in text


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name)[:12] for name in NAMES])
def test_pages_and_tables_hold_any_name(name, tmp_path):
    found = leaf(name, (name,))
    found.summary()
    page = write_html(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "\x00" not in page


def test_a_figure_that_fails_is_named_on_the_page_which_keeps_the_rest(tmp_path, monkeypatch):
    class Broken(Document):
        name, step, meta, notes = "broken", None, {"seed": 1}, ()

    def fails(ax):
        raise ValueError("<no> ink\nand more")

    good = Figure("Good", lambda ax: ax.plot([1, 2]), "a line")
    section = Section("Broken", "it is.", figures=(Figure("Bad", fails, "no line"), good), flags=("beware",))
    section_of.register(Broken)(lambda result: section)
    page = write_html(Broken(), tmp_path / "page.html").read_text()
    assert "Bad could not be drawn (ValueError: &lt;no&gt; ink)" in page
    assert page.count("<svg") == 1
    for words in ("it is.", "beware", "no line", "a line", "seed"):
        assert words in page
    monkeypatch.setattr(html, "svg", lambda *_, **_named: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # it stops the page
        write_html(Broken(), tmp_path / "page.html")


def test_a_checkpoint_of_any_name_is_shown_by_the_command_line(tmp_path):
    load_renamed("slice", NAME, tmp_path / "slice.npz")
    done = CliRunner().invoke(main, ["report", str(tmp_path / "slice.npz")])
    assert done.exit_code == 0, done.output


def test_a_name_of_one_character_is_not_shortened():
    assert literal("a") == "a"
    assert literal("a" * 60) == "a" * 60
    canvas = Canvas()
    assert canvas.subplots().set_title(literal("$a$")).get_text() == r"\$a\$"
