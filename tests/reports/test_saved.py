"""Files of every kind that earlier versions wrote load, say the same when saved again, and are printed, drawn and shown."""

import dataclasses
import importlib
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
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


# ---------------------------------------------------------------------------------------- arrays that are not those of the file


OTHERS = {
    "shorter": lambda array: array[..., :-1],
    "longer": lambda array: np.concatenate([array, array], axis=-1),
    "of one more dimension": lambda array: array[None],
    "a number": lambda array: np.array(array.ravel()[0]),
    "text": lambda array: array.astype(str),
    "complex": lambda array: array.astype(complex),
    "objects": lambda array: array.astype(object),
    "of another kind": lambda array: array.astype(bool if array.dtype.kind == "f" else float),
}
FREE = ("seconds", "training", "random_rises", "group_worst", "rates", "norms", "curves")  # whose length stands alone


@pytest.mark.parametrize("change", OTHERS)
def test_an_array_of_another_shape_or_dtype_is_named(change, tmp_path):
    refused = 0
    for path in FILES:
        document, arrays = content(path)
        names = list(arrays) if path.stem in ("multifractal", "slice", "plane", "spectrum", "barriers") else list(arrays)[:3]
        for name in names:
            field = name.rpartition(".")[2]
            alone = field in FREE or (field == "losses" and path.stem.startswith("study"))
            if change in ("shorter", "longer") and alone:
                continue
            other = OTHERS[change](arrays[name])
            np.savez(
                tmp_path / "other.npz", allow_pickle=True, document=np.array(json.dumps(document)), **(arrays | {name: other})
            )
            with pytest.raises(ValueError, match=r"path must be a result file .*other\.npz") as raised:
                fs.load(tmp_path / "other.npz")
            assert field in str(raised.value) or "must be of shape" in str(raised.value), str(raised.value)
            refused += 1
    assert refused > 80


def test_only_arrays_that_the_document_names_are_read(tmp_path, monkeypatch):
    document, arrays = content(SAVED / "slice.npz")
    read = []
    real = storage.read_archive.__globals__["_array"]
    monkeypatch.setitem(storage.read_archive.__globals__, "_array", lambda *given: read.append(given[2]) or real(*given))
    target = tmp_path / "more.npz"
    np.savez_compressed(target, document=np.array(json.dumps(document)), more=np.zeros(1 << 24), **arrays)  # 128 MiB in 128 KiB
    assert same(fs.load(target), fs.load(SAVED / "slice.npz"))
    assert sorted(set(read)) == sorted(arrays)


@pytest.mark.parametrize("name", ["result.losses", "document"])
def test_what_unpacks_to_more_than_an_archive_of_its_size_may_is_refused_before_it_is_read(name, tmp_path):
    document, arrays = content(SAVED / "slice.npz")
    members = {"document": np.array(json.dumps(document)), **arrays}
    members[name] = np.zeros(1 << 24) if name != "document" else np.array(" " * (1 << 24) + json.dumps(document))
    np.savez_compressed(tmp_path / "bomb.npz", **members)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.npz.*would unpack to \d+, more than"):
        fs.load(tmp_path / "bomb.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22


def test_arrays_stored_column_by_column_and_big_endian_are_the_same(tmp_path):
    document, arrays = content(SAVED / "plane.npz")
    changed = {name: np.asfortranarray(array).astype(array.dtype.newbyteorder(">")) for name, array in arrays.items()}
    np.savez(tmp_path / "other.npz", document=np.array(json.dumps(document)), **changed)
    found, expected = fs.load(tmp_path / "other.npz"), fs.load(SAVED / "plane.npz")
    np.testing.assert_array_equal(found.losses, expected.losses)
    assert found.to_json() == expected.to_json()
