"""The meta of results: a mapping as before, which does not change, with the usual entries as attributes."""

import copy
import dataclasses
import inspect
import json
import pickle

import pytest
import torch
from torch.nn import functional as F

import fastscape as fs
from fastscape.runs.provenance import Provenance, provenance

OBJECTIVE = fs.Objective(torch.nn.Linear(4, 3), [(torch.ones(2, 4), torch.tensor([0, 2]))], criterion=F.cross_entropy)


@pytest.fixture(scope="module")
def result():
    return fs.slice1d(OBJECTIVE, points=3, count=1, seed=3, method="loop")


def test_attributes_are_the_entries(result):
    known = [name for name in vars(Provenance) if not name.startswith("_") and name in result.meta]
    assert {"seed", "settings", "stop_reason", "path", "device", "dtype", "versions", "created", "remarks"} <= set(known)
    assert all(getattr(result.meta, name) == result.meta[name] for name in known)
    assert (result.meta.seed, result.meta.stop_reason, result.meta.path) == (3, "complete", "loop")


def test_what_is_not_there_has_a_default():
    assert (Provenance().seed, Provenance().stop_reason, Provenance().settings) == (None, "", {})
    with pytest.raises(AttributeError):
        Provenance().sede  # noqa: B018
    with pytest.raises(KeyError):
        Provenance()["seed"]


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.__setitem__("seed", 1),
        lambda meta: meta.__delitem__("seed"),
        lambda meta: meta.update(seed=1),
        lambda meta: meta.pop("seed"),
        lambda meta: meta.popitem(),
        lambda meta: meta.clear(),
        lambda meta: meta.setdefault("more", 1),
        lambda meta: setattr(meta, "seed", 1),
    ],
)
def test_it_does_not_change(result, change):
    before = dict(result.meta)
    with pytest.raises(TypeError, match=r"meta does not change; write dataclasses\.replace\(result, meta=result\.meta \| "):
        change(result.meta)
    assert result.meta == before


def test_more_entries_make_another():
    meta = Provenance(seed=1)
    for more in (meta | {"step": 2}, {"seed": 0, "step": 2} | meta):
        assert type(more) is Provenance
        assert more == {"seed": 1, "step": 2}
    grown = meta
    grown |= {"step": 2}
    assert (meta, grown) == ({"seed": 1}, {"seed": 1, "step": 2})
    assert (meta | {"seed": 5}).seed == 5


def test_copies_and_files_keep_it(result, tmp_path):
    for again in (
        pickle.loads(pickle.dumps(result)),
        copy.deepcopy(result),
        dataclasses.replace(result, meta=result.meta | {}),
        fs.load(result.save(tmp_path / "slice.npz")),
    ):
        assert type(again.meta) is Provenance
        assert again.meta == result.meta
    assert json.loads(json.dumps(provenance())) == provenance()


def test_every_result_class_declares_it():
    results = [value for value in (getattr(fs, name) for name in fs.__all__) if inspect.isclass(value)]
    declared = [value.__annotations__["meta"] for value in results if "meta" in vars(value).get("__annotations__", {})]
    assert len(declared) > 12
    assert set(declared) == {"Provenance"}
