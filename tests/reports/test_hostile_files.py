"""Damaged and hostile files of every kind give an error with their name, or a result that can be shown, in bounded memory."""

import json
import tracemalloc
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hostile import ROOM, SAVED, document_of, files, members_of, model, npy, read, rewritten, shown
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo


def tried(count, seed, folder):
    """Read ``count`` files; gives how many were refused and how many read, by what was done to them."""
    objective = fs.Objective(model(), zoo.digits(samples=8), criterion=F.cross_entropy)
    (folder / "whole").mkdir()
    found = Counter()
    for index, file in enumerate(files(count, seed, folder / "whole")):
        path = folder / f"{index}-{file.name}"
        path.write_bytes(file.content)
        where = f"{path.name}, {file.damage}"
        tracemalloc.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy, about the numbers that were put there
                shown(read(path, objective))
            found[file.damage, "read"] += 1
        except (ValueError, OSError) as error:
            if path.name not in str(error):
                raise AssertionError(f"{where}: the error does not name the file: {error!r}") from error
            found[file.damage, "refused"] += 1
        except Exception as error:
            raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            path.unlink()
        assert peak < 2 * file.declared + ROOM, f"{where}: {peak} bytes for a file that declares {file.declared}"
    return found


@pytest.fixture(autouse=True)
def _loaded():
    """Classes of results and what torch loads once are not the memory of a file."""
    fs.load(SAVED / "study.npz").summary()
    torch.ones(1).sum()


def test_damaged_files_of_every_kind_are_refused_by_name(tmp_path):
    found = tried(84, 0, tmp_path)
    assert found.total() == 84
    assert sum(number for (_, outcome), number in found.items() if outcome == "refused") > 42


@pytest.mark.parametrize("value", [None, "text", {}, [1]], ids=["none", "text", "empty", "list"])
@pytest.mark.parametrize("kind", ["barrier", "bench", "spectrum"])
def test_a_result_with_another_entry_in_its_meta_is_refused_by_name_or_shown(kind, value, tmp_path):
    members, target = members_of((SAVED / f"{kind}.npz").read_bytes()), tmp_path / "changed.npz"
    outcomes = Counter()
    for entry in document_of(members)["result"]["meta"]:
        document = document_of(members)
        document["result"]["meta"][entry] = value
        target.write_bytes(rewritten(members | {"document.npy": npy(np.array(json.dumps(document)))}))
        try:
            found = fs.load(target)
        except ValueError as error:
            outcomes["refused" if "changed.npz" in str(error) and "cannot be shown" in str(error) else str(error)] += 1
        else:
            assert found.summary()
            assert found.to_json()
            outcomes["shown"] += 1
    assert set(outcomes) <= {"shown", "refused"}
    assert outcomes["shown"] > 5


@pytest.mark.hostile
def test_two_thousand_damaged_files_are_refused_by_name(tmp_path):
    found = tried(2000, 1, tmp_path)
    for key, number in sorted(found.items()):
        print(*key, number)  # noqa: T201
    assert found.total() == 2000
    assert {outcome for (damage, outcome) in found if damage == "named_bomb"} <= {"refused"}
    assert {outcome for (damage, outcome) in found if damage == "document_bomb"} <= {"refused"}
