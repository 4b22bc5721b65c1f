"""Files of every kind that earlier versions wrote load, say the same when saved again, and are printed, drawn and shown."""

import dataclasses
import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from equality import same

import fastscape as fs
from fastscape.cli import main
from fastscape.reports import storage
from fastscape.reports.document import Document
from fastscape.reports.html import write_html

mpl.use("agg")
SAVED = Path(__file__).parent / "saved"
FILES = sorted(SAVED.glob("*.npz"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


def content(path):
    """The JSON string of a result file, and its arrays."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(str(arrays.pop("document"))), arrays


def rewritten(path, target, **changes):
    """The file with other entries at the top of its JSON string."""
    document, arrays = content(path)
    np.savez_compressed(target, document=np.array(json.dumps(document | changes)), **arrays)
    return target


def test_there_is_a_file_of_every_kind():
    for view in storage._views():
        importlib.import_module(view)
    assert {path.stem for path in FILES} == {kind for kind in storage.KINDS if not kind.startswith("test-")}


def test_a_saved_file_is_the_same_when_saved_again(path, tmp_path):
    loaded = fs.load(path)
    assert isinstance(loaded, Document)
    assert loaded.kind == path.stem
    again = loaded.save(tmp_path / "again")
    assert same(fs.load(again), loaded)
    (before, arrays), (after, others) = content(path), content(again)
    assert before == after
    assert same(arrays, others)
    assert same(pickle.loads(pickle.dumps(loaded)), loaded)


def test_a_saved_file_is_printed_and_has_strict_json(path):
    loaded = fs.load(path)
    assert loaded.verdict() in " ".join(loaded.summary().split())
    assert "\n" not in repr(loaded)
    assert type(loaded).__name__ in repr(loaded)
    document = json.loads(loaded.to_json(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert document["flags"] == list(loaded.flags)
    assert document["verdict"] == loaded.verdict()


def test_a_saved_file_has_a_page_with_its_verdict_flags_and_provenance(path, tmp_path):
    loaded = fs.load(path)
    page = write_html(loaded, tmp_path / "page.html").read_text()
    section = loaded.section()
    for words in (section.title, section.verdict, *section.flags, *(quantity.label for quantity in section.quantities)):
        assert escaped(words) in page
    assert page.count("<svg") >= len(section.figures)
    for _, meta in loaded.probed:
        assert str(meta.get("weight_fingerprint") or "") in page


def escaped(words):
    for plain, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;")):
        words = words.replace(plain, entity)
    return words


def test_a_saved_file_is_plotted(path):
    import matplotlib.pyplot as plt

    loaded = fs.load(path)
    section = loaded.section()
    if section.cover or (section.figures and path.stem != "study"):
        assert loaded.plot() is not None
    elif not section.figures:
        with pytest.raises(ValueError, match=f"a {type(loaded).__name__} without figures cannot be plotted"):
            loaded.plot()
    plt.close("all")


@pytest.mark.parametrize("format", [2, 17])
def test_a_file_of_a_newer_version_is_named_with_both_formats_and_the_remedy(format, tmp_path):
    newer = rewritten(SAVED / "slice.npz", tmp_path / "newer.npz", format=format, kind="of tomorrow")
    with pytest.raises(ValueError, match="written by a newer fastscape") as refused:
        fs.load(newer)
    for words in (str(newer), f"its format is {format}", f"reads up to {storage.FORMAT}", "pip install --upgrade"):
        assert words in str(refused.value)


def test_the_command_line_says_so_too(tmp_path):
    from click.testing import CliRunner

    newer = rewritten(SAVED / "slice.npz", tmp_path / "newer.npz", format=2)
    done = CliRunner().invoke(main, ["report", str(newer)])
    assert done.exit_code == 2
    assert "written by a newer fastscape" in done.stderr


@pytest.mark.parametrize("format", ["2", None, [], float("nan"), 1.5, 0, -1, True])
def test_a_format_that_is_no_number_of_one_is_damage(format, tmp_path):
    odd = rewritten(SAVED / "slice.npz", tmp_path / "odd.npz", format=format)
    with pytest.raises(ValueError, match=r"must be a result file written by fastscape, got '.*odd\.npz'"):
        fs.load(odd)


def test_an_unknown_kind_is_named(tmp_path):
    other = rewritten(SAVED / "slice.npz", tmp_path / "other.npz", kind="landscape of cheese")
    with pytest.raises(ValueError, match=r"got '.*other\.npz' .*landscape of cheese"):
        fs.load(other)


def test_a_result_without_a_view_says_that_none_is_registered():
    @dataclasses.dataclass(frozen=True)
    class Bare(Document):
        name: str = "bare"

    with pytest.raises(TypeError, match="there is no view of a Bare"):
        Bare().section()


def test_only_spectra_stand_beside_multifractal_results(tmp_path):
    multifractal, spectrum, lines = (fs.load(SAVED / f"{kind}.npz") for kind in ("multifractal", "spectrum", "slice"))
    with pytest.raises(TypeError, match="must be one to show beside a MultifractalResult, got a SliceResult"):
        write_html(multifractal, tmp_path / "page.html", spectrum=lines)
    with pytest.raises(TypeError, match="got a SliceResult to show with it"):
        lines.table(spectrum)
    both = multifractal.to_dict(spectrum)
    assert both["leads"] | {"lambda_max": f"{spectrum.lambda_max:.4g}"} == both["leads"]
    assert both["spectrum"] == spectrum.to_dict()


def test_a_users_subclass_of_a_result_is_shown_as_it():
    program = (
        "import sys, fastscape as fs\n"
        "class Mine(fs.SpectrumResult): pass\n"
        "loaded = fs.load(sys.argv[1])\n"
        "print(repr(Mine(**loaded.__dict__))[:6])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(SAVED / "spectrum.npz")], capture_output=True, text=True, check=False
    )
    assert run.stdout == "<Mine \n", run.stderr


def test_a_file_gets_the_permissions_of_any_other_without_asking_for_the_umask(tmp_path, monkeypatch):
    """Asking sets it: another thread's files would be writable by everybody meanwhile."""
    result, before = fs.load(FILES[0]), os.umask(0o027)
    monkeypatch.setattr(os, "umask", None)
    try:
        path = result.save(tmp_path / "result.npz")
        assert path.stat().st_mode & 0o777 == 0o640
        result.save(path)
        assert path.stat().st_mode & 0o777 == 0o640
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert [file.name for file in tmp_path.iterdir()] == ["result.npz"]
