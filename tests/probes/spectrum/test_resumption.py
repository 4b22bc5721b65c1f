"""Spectra that go on after whatever ended them: the bytes of a run that nothing disturbed, and no product made twice."""

import copy
import errno
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.curvature import products, recorded
from fastscape.curvature.gradient_difference import DifferencePath
from fastscape.curvature.products import Products
from fastscape.curvature.selection import Selection
from fastscape.probes.spectrum import memory
from fastscape.runs import evaluations
from fastscape.runs.record import Record

SETTINGS = {"k": 2, "nodes": 8, "targets": {"trace": None}, "seed": 3}
VARYING = {"seconds", "created", "budget", "refused", "reason"}  # entries of meta that tell of the run, or of its clock
VARYING |= {"gradients_per_product", "trial_products"}


def network(shift=0.0, width=6, batches=(5, 5, 2)):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
    with torch.no_grad():
        model[0].weight.add_(shift)
    return fs.Objective(model, [(torch.randn(n, 6), torch.randint(0, 3, (n,))) for n in batches], criterion=F.cross_entropy)


def adam(objective):
    """The state of Adam after a few steps of a copy."""
    model = copy.deepcopy(objective.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(F.cross_entropy(model(inputs), targets) for inputs, targets in objective.batches).backward()
        optimizer.step()
    return optimizer


class Made:
    """Vectors that are multiplied, trials apart; the block of some number fails."""

    def __init__(self, monkeypatch):
        self.vectors, self.blocks, self.fails, self.error = 0, 0, None, RuntimeError("killed")
        real = Products._multiply

        def multiply(products, rows, *rest):
            if self.blocks == self.fails:
                raise self.error
            self.blocks += 1
            self.vectors += len(rows)
            real(products, rows, *rest)

        monkeypatch.setattr(Products, "_multiply", multiply)

    def by(self, work, fails=None):
        """What some work gives, with blocks and vectors that it took."""
        self.blocks = self.vectors = 0
        self.fails = fails
        return work(), self.blocks, self.vectors


@pytest.fixture
def made(monkeypatch):
    return Made(monkeypatch)


def bits(value):
    """All numbers of a result, without what tells of its run."""
    if isinstance(value, fs.SpectrumTrajectory):
        return [bits(point) for point in value.points]
    document = {name: part for name, part in vars(value).items() if name not in ("meta", "vectors")}
    document["vectors"] = None if getattr(value, "vectors", None) is None else value.vectors.numpy().tobytes()
    document["meta"] = {name: part for name, part in getattr(value, "meta", {}).items() if name not in VARYING}
    return repr([(name, exact(part)) for name, part in document.items()])


def exact(part):
    if isinstance(part, np.ndarray):
        return part.tobytes()
    if hasattr(part, "__dataclass_fields__"):
        return [exact(inner) for inner in vars(part).values()]
    return part.hex() if isinstance(part, float) else part


def chosen(folder):
    """What the first run chose is measured; a folder with that and no product, to begin again from."""
    for path in folder.glob("evaluations.*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if not any(kind in line for kind in KINDS)))


KINDS = (b'"product.', b'"forms.', b'"numbers.', b'"gradient.', b'"batch-sharpness.', b'"start.')
DOORS = {
    "spectrum": lambda objective, folder, **more: fs.spectrum(objective, resume=folder, **SETTINGS | more),
    "ggn": lambda objective, folder, **more: fs.spectrum(objective, operator="ggn", resume=folder, **SETTINGS | more),
    "stable": lambda objective, folder, **more: fs.spectrum(
        objective, optimizer=adam(objective), resume=folder, **SETTINGS | more
    ),
    "edge": lambda objective, folder, **more: fs.edge_of_stability(objective, adam(objective), resume=folder, seed=3, **more),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_run_that_failed_at_any_product_goes_on_to_the_same_bytes(tmp_path, made, door):
    objective, work = network(), DOORS[door]
    whole, blocks, vectors = made.by(lambda: work(objective, tmp_path))
    assert blocks > 4
    for fails in range(0, blocks, 1 if door == "spectrum" else blocks // 3):
        chosen(tmp_path)
        with pytest.raises((RuntimeError, fs.SpectrumError)):
            made.by(lambda: work(objective, tmp_path), fails)
        before = made.vectors
        found, _, after = made.by(lambda: work(objective, tmp_path))
        assert bits(found) == bits(whole)
        assert before + after == vectors, "what is done is not done again"
        assert door == "edge" or found.meta["trial_products"] == whole.meta["trial_products"]
    found, blocks, _ = made.by(lambda: work(objective, tmp_path))
    assert (bits(found), blocks) == (bits(whole), 0)


def test_checkpoints_go_on_from_the_vectors_that_they_were_started_from(tmp_path, made, monkeypatch):
    monkeypatch.setattr(evaluations, "_SMALL", 0)  # every product in a file of its own
    files = [tmp_path / f"step{step}.safetensors" for step in range(3)]
    for step, file in enumerate(files):
        save_file(network(0.1 * step).model.state_dict(), file)

    def work(folder=tmp_path / "run", **more):
        return fs.spectra(network(), files, resume=folder, method="graph", **SETTINGS | more)

    whole, blocks, _ = made.by(lambda: work(tmp_path / "whole"))
    assert len({point.lambda_max for point in whole.points}) == 3
    for _ in range(blocks // 5):  # each goes a little further than the one before it
        with pytest.raises(fs.SpectrumError):
            made.by(work, fails=5)
    left = made.by(work)
    assert bits(left[0]) == bits(whole)
    assert made.by(work)[1:] == (0, 0)
    assert bits(made.by(lambda: work(None))[0]) == bits(whole)
    more, anew = (made.by(lambda folder=folder: work(folder, nodes=44))[2] for folder in (tmp_path / "run", None))
    assert 0 < more < anew / 2, "later ones keep the start that they had"


@pytest.mark.parametrize("method", ["gradient difference", "graph, batched"])
def test_what_was_measured_is_obeyed(tmp_path, made, monkeypatch, method):
    """The step of differences, the rows of the basis, and the product after which what takes long to set up is tried."""
    objective = network().cast(torch.float64)
    monkeypatch.setattr(recorded, "REPLAY_AFTER", 1.0)
    asked = {"method": method} if method == "gradient difference" else {}
    whole, blocks, _ = made.by(lambda: fs.spectrum(objective, resume=tmp_path, **SETTINGS | asked))
    assert (b", true, " in b"".join(path.read_bytes() for path in tmp_path.glob("*.jsonl"))) is False
    for fails in (1, blocks // 2, blocks - 1):
        chosen(tmp_path)
        with pytest.raises((RuntimeError, fs.SpectrumError)):
            made.by(lambda: fs.spectrum(objective, resume=tmp_path, **SETTINGS | asked), fails)
        with monkeypatch.context() as patch:
            patch.setattr(DifferencePath, "_calibrate", None)
            patch.setattr(memory, "available_memory", lambda _: 1)
            found, _, _ = made.by(lambda: fs.spectrum(objective, resume=tmp_path, **SETTINGS | asked))
        assert bits(found) == bits(whole)
        assert found.meta["product_error"] == whole.meta["product_error"]


def test_what_takes_long_to_set_up_is_tried_by_the_count_of_products_and_not_by_a_clock(tmp_path, monkeypatch):
    tried, real = [], Selection.prepare

    def prepare(self, count, rows=None, *, thorough=False):
        tried.append(thorough)
        return real(self, count, rows, thorough=thorough)

    monkeypatch.setattr(Selection, "prepare", prepare)
    monkeypatch.setattr(products, "REPLAY_AFTER", 0.0)
    for limit, wanted in ((math.inf, False), (1.0, True)):
        monkeypatch.setattr(recorded, "REPLAY_AFTER", limit)
        fs.spectrum(network(), resume=tmp_path / str(wanted), **SETTINGS)
        assert any(tried) == wanted


def test_another_run_is_refused_by_name_before_any_product(tmp_path, made, untouched):
    objective = network()
    with untouched(objective.model):
        fs.spectrum(objective, resume=tmp_path, **SETTINGS)
    changes = {
        "weights": lambda: fs.spectrum(network(0.1), resume=tmp_path, **SETTINGS),
        "data, batch weights": lambda: fs.spectrum(network(batches=(5, 5, 3)), resume=tmp_path, **SETTINGS),
        "operator": lambda: fs.spectrum(objective, operator="ggn", resume=tmp_path, **SETTINGS),
        "seed": lambda: fs.spectrum(objective, resume=tmp_path, **SETTINGS | {"seed": 4}),
        "method": lambda: fs.spectrum(objective, resume=tmp_path, method="reverse", **SETTINGS),
        "dtype": lambda: fs.spectrum(objective.cast(torch.float64), resume=tmp_path, **SETTINGS),
        "kind": lambda: fs.edge_of_stability(objective, adam(objective), run=fs.Run(resume=tmp_path)),
        "loss function": lambda: fs.spectrum(
            fs.Objective(objective.model, list(objective.batches), criterion=lambda z, y: 2 * F.cross_entropy(z, y)),
            resume=tmp_path,
            **SETTINGS,
        ),
    }
    for words, work in changes.items():
        with pytest.raises(ValueError, match=f"resume: the journal in '.*' is of other {words}; use another folder"):
            made.by(work)
        assert made.vectors == 0
    with pytest.raises(
        ValueError, match=r"of spectrum, whose result needs the model; call fs.spectrum\(..., resume='.*'\) again"
    ):
        fs.merge(tmp_path)
    with pytest.raises(TypeError, match="resume must be the path of a folder, got int 3"):
        fs.spectrum(objective, resume=3)


def test_other_goals_take_what_fits(tmp_path, made):
    objective = network()
    fixed = {"method": "graph", "seed": 3}
    _, _, first = made.by(lambda: fs.spectrum(objective, 2, nodes=12, targets={"trace": 0.5}, resume=tmp_path, **fixed))
    for goals in ({"k": 2, "nodes": 12, "targets": {"trace": 0.05}}, {"k": 4, "nodes": 24, "targets": {"trace": 0.3}}):
        whole, _, wanted = made.by(lambda goals=goals: fs.spectrum(objective, **fixed, **goals))
        found, _, new = made.by(lambda goals=goals: fs.spectrum(objective, resume=tmp_path, **fixed, **goals))
        assert bits(found) == bits(whole)
        assert new < wanted
    assert first > 0


def test_a_fresh_budget_goes_on_from_all_that_is_done(tmp_path, made, monkeypatch, clock):
    """Products that are taken cost none of it, and those that follow are expected to take what products took."""
    objective, real = network(width=12), Products._multiply

    def slow(products, *arguments):
        clock.now += 1.0
        real(products, *arguments)

    monkeypatch.setattr(Products, "_multiply", slow)
    fixed = {"k": 3, "nodes": 30, "method": "graph", "seed": 3, "targets": {"trace": 0.2}}
    whole, blocks, _ = made.by(lambda: fs.spectrum(objective, resume=tmp_path / "whole", **fixed))
    assert whole.meta["stop_reason"] == "targets met"
    found, done = None, []
    while found is None or found.meta["stop_reason"] == "deadline":
        found, each, _ = made.by(lambda: fs.spectrum(objective, resume=tmp_path / "run", budget=6.0, **fixed))
        done.append(each)
        assert each <= 7
        assert found.products >= done[0], "none is lost"
        assert len(done) < 9
    assert bits(found) == bits(whole)
    assert len(done) > 2
    with pytest.raises(fs.SpectrumError):
        made.by(lambda: fs.spectrum(objective, resume=tmp_path / "short", **fixed), fails=5)
    found, each, _ = made.by(lambda: fs.spectrum(objective, resume=tmp_path / "short", budget=1.2, **fixed))
    assert (found.products, each) == (20, 0), "three blocks of a second do not fit"
    assert blocks <= sum(done)
    found, each, _ = made.by(lambda: fs.spectrum(objective, resume=tmp_path / "run", budget="1ms", **fixed))
    assert (bits(found), each) == (bits(whole), 0)


def test_a_full_disk_loses_no_number_and_is_noted(tmp_path, monkeypatch):
    objective = network()
    whole = fs.spectrum(objective, method="graph", resume=tmp_path / "whole", **SETTINGS)

    def full(*_arguments, **_keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Record, "_write", full)
    found = fs.spectrum(objective, method="graph", resume=tmp_path / "full", **SETTINGS)
    assert "the journal lacks what the disk refused" in found.notes[-1]
    np.testing.assert_array_equal(found.eigenvalues, whole.eigenvalues)
    assert found.notes[:-1] == whole.notes


CHILD = """
import sys
sys.path[:0] = sys.argv[1:3]
import torch
torch.set_num_threads(1)
from fastscape.curvature.products import Products
from fastscape.runs import evaluations
evaluations._SMALL = 4096
from probes.spectrum import test_resumption as test
real = Products._multiply
def multiply(*arguments):
    print("product", flush=True)
    real(*arguments)
Products._multiply = multiply
result = test.DOORS[sys.argv[4]](test.network(width=40), sys.argv[3], method="graph")
print(test.bits(result), flush=True)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_loses_one_product_at_most(tmp_path):
    """Twenty processes, each killed some microseconds after one of its products began; products are files, the rest lines."""
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHILD, str(tests), str(tests.parent)]

    def started(folder):
        return subprocess.Popen([*command, str(folder), "stable"], stdout=subprocess.PIPE, text=True, env=os.environ)

    with started(tmp_path / "whole") as process:
        whole = process.stdout.read().splitlines()
    blocks, chance, killed = len(whole) - 1, random.Random(0), 0
    made = 0
    while killed < 20:
        with started(tmp_path / "run") as process:
            for _ in range(chance.randrange(1, 4)):
                line = process.stdout.readline()
                made += line == "product\n"
            for _ in range(chance.randrange(20000)):
                pass
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().splitlines()
            made += rest.count("product")
        killed += 1
        if not line.startswith("product"):
            break
    with started(tmp_path / "run") as process:
        again = process.stdout.read().splitlines()
    assert again[-1] == whole[-1]
    assert made + len(again) - 1 <= blocks + killed
