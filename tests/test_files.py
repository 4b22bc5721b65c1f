"""Files are written whole or not at all, alone and together, whichever operation meets a full disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from full_disk import full_after

from fastscape._files import leftovers, replaced, staged, write_text

ROOT = Path(__file__).parents[1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_text_takes_the_place_of_the_older_one_with_the_rights_of_a_new_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("older")
    write_text(path, "new \udcff é")
    assert path.read_bytes() == "new ? é".encode()
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert names(tmp_path) == ["a.txt", "plain"]


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    write_text(tmp_path / ("a" * 255), "x")
    assert names(tmp_path) == ["a" * 255]


@pytest.mark.parametrize("count", range(8))
def test_one_file_is_the_older_or_the_new_one(tmp_path, monkeypatch, count):
    path = tmp_path / "a.txt"
    path.write_text("older")
    try:
        with full_after(monkeypatch, count, tmp_path), replaced(path) as stream:
            for letter in b"new":
                stream.write(bytes([letter]))
    except OSError as error:
        assert path.read_text() == "older"
        assert str(path) in str(error)  # noqa: PT017 - it is not raised at every count
    else:
        assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("count", range(24))
@pytest.mark.parametrize("older", [("a", "b", "page"), ("a",), ()])
def test_files_that_belong_together_are_all_older_or_all_new(tmp_path, monkeypatch, count, older):
    for name in older:
        (tmp_path / name).write_text(f"older {name}")
    (tmp_path / "other").write_text("stays")
    try:
        with full_after(monkeypatch, count, tmp_path) as done, staged(tmp_path, outdated=["page"]) as staging:
            write_text(staging / "a", "new a")
            write_text(staging / "b", "new b")
    except OSError:
        assert names(tmp_path) == sorted([*older, "other"])
        assert all((tmp_path / name).read_text() == f"older {name}" for name in older)
    else:
        assert names(tmp_path) == ["a", "b", "other"]
        assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["new a", "new b"]
        assert len(done) >= 8
    assert (tmp_path / "other").read_text() == "stays"


def test_a_directory_in_the_place_of_a_file_is_refused_and_kept(tmp_path):
    (tmp_path / "a").write_text("older")
    (tmp_path / "b").mkdir()

    def written():
        with staged(tmp_path) as staging:
            write_text(staging / "a", "new")
            write_text(staging / "b", "new")

    with pytest.raises(IsADirectoryError, match="b'"):
        written()
    assert (tmp_path / "a").read_text() == "older"
    assert (tmp_path / "b").is_dir()


@pytest.mark.parametrize("renames", range(4))
def test_what_a_killed_process_was_putting_in_place_is_finished_or_removed(tmp_path, renames):
    for name in ("a", "b", "page"):
        (tmp_path / name).write_text("older")
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom fastscape._files import staged\n"
        "folder, left, rename = Path(sys.argv[1]), int(sys.argv[2]), Path.replace\n"
        "def replace(path, target):\n"
        "    global left\n"
        "    if not left: os._exit(9)\n"
        "    left -= 1\n"
        "    return rename(path, target)\n"
        "Path.replace = replace\n"
        "with staged(folder, ['page']) as staging:\n"
        "    (staging / 'a').write_text('new')\n    (staging / 'b').write_text('new')\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(renames)], check=False, cwd=ROOT)
    assert {"a", "b"} <= set(names(tmp_path))
    leftovers(tmp_path)
    assert {(tmp_path / name).read_text() for name in ("a", "b")} == {"new"}
    assert [name for name in names(tmp_path) if name not in ("a", "b", "page")] == []
    assert (tmp_path / "page").exists() is (renames == 0)


def test_many_threads_write_without_touching_the_umask(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask belongs to all threads"))
    with staged(tmp_path) as staging:
        write_text(staging / "a", "x")
    assert names(tmp_path) == ["a"]
