"""Evaluations in a journal: whatever ends a run, and whatever happens to its files, the next one gives the same bytes."""

import errno
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.runs import evaluations as module
from fastscape.runs.anytime import Anytime
from fastscape.runs.budget import Budget
from fastscape.runs.evaluations import opened
from fastscape.runs.journal import Journal
from fastscape.runs.record import Record

COUNT = 6


def objective(shift=0.0):
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.linspace(-1, 1, tensor.numel()).view_as(tensor) + shift)
    return fs.Objective(model, [(torch.ones(2, 3), torch.tensor([0, 1]))], criterion=F.cross_entropy)


def step(vector, index):
    """One evaluation of a fake probe, each of which asks for what the one before it gave."""
    torch.manual_seed(index)
    image = (vector @ torch.randn(len(vector), len(vector))).T  # as it lies in memory, so that sums are of one order
    return {"image": image, "numbers": np.array([float(image.sum()), np.nan]), "index": index, "words": ["a", [1.5, np.inf]]}


def chain(folder, size=4, count=COUNT, die=None, seed=0, kind="chain", of=objective):
    """All that a fake probe evaluated, and how often it did."""
    found, made = [], []
    with opened(folder, kind, [of], {"seed": seed}) as evaluations:
        vector = torch.full((size, size), float(seed + 1)).T
        for index in range(count):

            def make(vector=vector, index=index):
                if index == die:
                    raise RuntimeError("killed")
                made.append(index)
                return step(vector, index)

            value = evaluations.of("part", 1).taken("test", (index, {"of": vector}), make)
            found.append(value)
            vector = value["image"] / value["image"].norm()
        notes = evaluations.notes
    return found, made, notes


def bits(found):
    """Bytes, and what else of a value sums depend on."""
    return [
        (v["image"].numpy().tobytes(), v["image"].stride(), v["numbers"].tobytes(), v["index"], json.dumps(v["words"]))
        for v in found
    ]


sizes = pytest.mark.parametrize("size", [4, 200], ids=["lines", "files"])


@sizes
def test_a_run_that_failed_anywhere_goes_on_to_the_same_bits(tmp_path, size):
    whole, made, _ = chain(tmp_path / "whole", size)
    assert made == list(range(COUNT))
    assert bits(chain(None, size)[0]) == bits(whole)
    for die in range(COUNT):
        folder = tmp_path / str(die)
        with pytest.raises(RuntimeError, match="killed"):
            chain(folder, size, die=die)
        found, made, notes = chain(folder, size)
        assert (bits(found), made, notes) == (bits(whole), list(range(die, COUNT)), ())
    assert chain(tmp_path / "whole", size, count=COUNT + 2)[1] == [COUNT, COUNT + 1]


@sizes
@pytest.mark.parametrize("damage", ["torn", "flipped", "missing"])
def test_what_is_damaged_is_done_again(tmp_path, size, damage):
    whole = bits(chain(tmp_path, size)[0])
    if size == 4:
        (path,) = tmp_path.glob("evaluations.*.jsonl")
        head, *lines = path.read_bytes().splitlines(keepends=True)
        line = lines[2]
        lines[2] = {"torn": line[:-9] + b"\n", "flipped": line[:99] + b"#" + line[100:], "missing": b""}[damage]
        path.write_bytes(b"".join([head, *lines]))
    else:
        path = sorted(tmp_path.glob("test.*.safetensors"))[2]
        content = path.read_bytes()
        path.write_bytes({"torn": content[:1000], "flipped": content[:5000] + b"#" + content[5001:], "missing": b""}[damage])
        if damage == "missing":
            path.unlink()
    found, made, notes = chain(tmp_path, size)
    assert bits(found) == whole
    assert len(made) == 1
    assert notes == (() if damage == "missing" else ("1 evaluation torn or changed in the journal, and done again",))
    assert chain(tmp_path, size)[1] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed"),
        ({"kind": "other", "seed": 1}, "kind"),
        ({"of": lambda: objective(0.5)}, "weights"),
    ],
)
def test_a_journal_of_another_run_is_refused_by_name_before_any_work(tmp_path, changes, words):
    chain(tmp_path)
    with pytest.raises(ValueError, match=f"resume: the journal in '.*' is of other {words}; use another folder"):
        chain(tmp_path, die=0, **changes)
    assert chain(tmp_path)[1] == [], "and the lock is free"
    Journal(tmp_path)  # knows the folder by its manifest, and refuses it when it begins


@pytest.mark.parametrize("kind", ["link to nothing", "file"])
def test_what_is_no_folder_is_refused_as_that(tmp_path, kind):
    (tmp_path / "run").symlink_to(tmp_path / "nothing") if kind == "link to nothing" else (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=f"resume must be a folder, got the {kind}"):
        chain(tmp_path / "run")


def test_another_loss_function_is_told_by_its_value(tmp_path):
    with opened(tmp_path, "chain", [objective], {}) as evaluations:
        assert evaluations.same_loss(0.5) == 0.5
    with opened(tmp_path, "chain", [objective], {}) as evaluations:
        assert evaluations.same_loss(0.5 + 1e-9) == 0.5
        with pytest.raises(ValueError, match="is of other loss function; use another folder"):
            evaluations.same_loss(0.6)


def test_threads_are_those_of_the_first_run(tmp_path):
    chain(tmp_path)
    before = torch.get_num_threads()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"threads": before + 1}))
    with opened(tmp_path, "chain", [objective], {"seed": 0}):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@sizes
def test_a_full_disk_loses_no_number_and_is_told(tmp_path, size, monkeypatch):
    whole = bits(chain(None, size)[0])
    with opened(tmp_path, "chain", [objective], {"seed": 0}):  # the manifest is there
        pass

    def full(*_arguments, **_keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Record, "_write", full)
        patch.setattr(module, "replaced", full)
        found, _, notes = chain(tmp_path, size)
    assert bits(found) == whole
    assert "the journal lacks what the disk refused" in notes[0]
    assert "No space left" in notes[0]
    assert bits(chain(tmp_path, size)[0]) == whole


def test_parts_of_an_evaluation_are_not_written_beside_it_but_for_what_always_is(tmp_path):
    def run(made):
        with opened(tmp_path, "chain", [objective], {}) as evaluations:

            def inner(kind, **keywords):
                return evaluations.taken(kind, (), lambda: made.append(kind) or {"x": 1.0}, **keywords)["x"]

            outer = evaluations.taken("outer", (), lambda: {"x": inner("inner") + inner("choice", always=True)})
            return outer["x"], inner("choice"), inner("inner")

    for wanted in (["inner", "choice", "inner"], []):
        made = []
        assert run(made) == (2.0, 1.0, 1.0)
        assert made == wanted


def test_what_is_done_needs_no_budget_and_tells_how_long_the_rest_takes(tmp_path, clock):
    """A deadline keeps nothing from being taken from the journal; what is new has the time that is left."""

    def run(budget, count, slow):
        made = []
        with opened(tmp_path, "chain", [objective], {}) as evaluations:
            work = Anytime(None if budget is None else Budget(budget), evaluations=evaluations)

            def make(index):
                made.append(index)
                clock.now += slow
                return {"x": index}

            with work.ends():
                for index in work.stream(range(count)):
                    evaluations.taken("test", (index,), lambda index=index: make(index))
            return made, work.reason, work.done

    assert run(None, 3, 10.0) == ([0, 1, 2], "complete", 3)
    assert run(1.0, 9, 10.0) == ([], "deadline", 3), "one of 10 s does not fit into 1 s"
    assert run(25.0, 9, 10.0) == ([3, 4], "deadline", 5), "a fresh budget, of which the three take nothing"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0),
        torch.from_numpy(np.zeros(0)),
        torch.zeros(3, 0),
        torch.ones(1).expand(6),
        torch.arange(6.0)[::2],
        torch.arange(12.0).view(3, 4)[:, ::2],
        torch.full((2,), 1 + 2j).conj(),
        torch.full((2,), 3.0)._neg_view(),
    ],
    ids=["empty", "empty array", "no columns", "expanded", "strided", "columns", "conjugate", "negative"],
)
def test_tensors_may_lie_in_memory_as_they_like(tmp_path, tensor):
    calls = []

    def ask(evaluations):
        return evaluations.taken("test", (tensor,), lambda: calls.append(1) or {"same": tensor})["same"]

    for _ in range(2):
        with opened(tmp_path / "run", "test", [objective], {}) as evaluations:
            found = ask(evaluations)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    assert calls == [1]


def test_numbers_of_numpy_ask_for_what_those_of_python_do(tmp_path):
    calls = []
    for seed, rate, flag in ((np.int64(3), np.float32(0.5), np.bool_(True)), (3, 0.5, True)):
        with opened(tmp_path / "run", "test", [objective], {"seed": seed, "rate": rate}) as evaluations:
            evaluations.taken("test", (seed, rate, flag), lambda: calls.append(1) or {"number": np.float32(0.5)})
    assert calls == [1]


@pytest.mark.parametrize("probe", ["spectrum", "slice1d", "multifractal"])
def test_probes_go_on_with_seeds_of_numpy(tmp_path, probe):
    few = {
        "spectrum": {"k": np.int64(1), "nodes": np.int64(3), "memory": np.int64(2**30), "seed": np.int64(1)},
        "slice1d": {"count": np.int64(1), "points": np.int64(3), "seed": np.int64(1)},
        "multifractal": {"probe": fs.ProbeSettings(count=2, banks=1, seed=np.int64(1)), "step": np.int64(7)},
    }[probe]
    first, second = (getattr(fs, probe)(objective(), resume=tmp_path / probe, **few) for _ in range(2))
    assert first.step == second.step
    assert first.loss == second.loss
