"""Products whose batches are dealt to processes, by a group of one; groups of several are in tests/distributed."""

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape._heap import Heap
from fastscape.curvature.plan import Plan
from fastscape.curvature.products import Products
from fastscape.curvature.served import dealt


@pytest.fixture
def single():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def ragged():
    """Three batches of other sizes."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batches = [(torch.randn(n, 5, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (7, 4, 12)]
    return fs.Objective(model, batches, criterion=F.cross_entropy)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_work_is_dealt_within_four_thirds_of_the_best(ranks):
    """Graham (1969): the longest first, each to the least loaded, takes at most 4/3 - 1/(3 W) of the optimum."""
    for seed in range(5):
        costs = np.random.default_rng(seed).integers(1, 100, 7).tolist()

        def longest(owners, costs=costs):
            return max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(ranks))

        owners = dealt(costs, ranks)
        best = min(map(longest, itertools.product(range(ranks), repeat=len(costs))))
        assert longest(owners) <= (4 / 3 - 1 / (3 * ranks)) * best
        assert owners[int(np.argmax(costs))] == 0  # where the path is chosen


def test_dealing_gives_each_piece_to_one_and_some_to_none():
    assert dealt([3.0, 3.0, 3.0], 2) == [0, 1, 0]
    assert dealt([1.0, 5.0], 4) == [1, 0]


def test_a_group_of_one_gives_the_products_of_one_process(single, ragged, untouched):
    vectors = torch.randn(ragged.size, 3, dtype=torch.float64)
    alone = fs.hessian(ragged, method="graph", distributed=False)
    with untouched(ragged.model):
        served = fs.hessian(ragged, distributed=True)
        image, forms = served.forms(vectors)
        torch.testing.assert_close(image, alone @ vectors, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(forms, alone.forms(vectors)[1], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(served.quadratic_forms(vectors), alone.quadratic_forms(vectors), rtol=1e-12, atol=1e-13)
    assert served.choice.name == "graph"
    assert served.products >= 9


def test_vectors_of_any_layout_have_the_same_product(single, ragged):
    served = fs.hessian(ragged, distributed=True)
    vectors = torch.randn(ragged.size, 4, dtype=torch.float64)
    before = vectors.clone()
    assert torch.equal(served @ vectors[:, 1], served @ vectors[:, 1].clone())
    assert torch.equal(served @ vectors.T.contiguous().T, served @ vectors)
    assert torch.equal(vectors, before)


def test_the_memory_of_products_is_taken_again_and_no_result_is_in_it(single, ragged):
    vectors = torch.randn(ragged.size, 5, dtype=torch.float64)
    served = fs.hessian(ragged, distributed=True, method="graph")
    first = served @ vectors
    held = [one.data_ptr() for one in served.served._held]
    before = first.clone()
    few = served @ vectors[:, :2]
    again = served @ -vectors
    assert [one.data_ptr() for one in served.served._held] == held
    assert len(held) == len(ragged.batches)
    assert torch.equal(first, before)
    assert torch.equal(again, -before)
    assert torch.equal(few, before[:, :2])
    served.release()
    assert served.served._held == []
    capped = fs.hessian(ragged, distributed=True, method="graph", memory=2**26)
    assert torch.equal(capped @ vectors, before)
    assert capped.served._held == []


def test_what_obeys_a_plan_keeps_memory_as_what_made_it(single):
    """A rank that has tried nothing itself knows from the plan that its products are worth it."""
    torch.manual_seed(0)
    data = [(torch.randn(512, 256), torch.randint(0, 10, (512,)))]
    objective = fs.Objective(nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10)), data, criterion=F.cross_entropy)
    made, obeying = (Products(objective, "hessian", "graph", None) for _ in range(2))
    made.prepare(1)
    obeying.obey(1, Plan.made(made.space, made.selection, 1))
    for products in (made, obeying):
        assert isinstance(products.space.heap(kept=True), Heap)


def test_few_vectors_at_a_time_give_the_same_bits(single, ragged, monkeypatch):
    """Where the products of all batches do not fit, they are summed for a few vectors at a time."""
    vectors = torch.randn(ragged.size, 7, dtype=torch.float64)
    for path in ("graph", "graph, batched"):
        whole, _ = fs.hessian(ragged, method=path, distributed=True).forms(vectors)
        monkeypatch.setattr("fastscape.curvature.served._STORED", 1)
        parts, _ = fs.hessian(ragged, method=path, distributed=True).forms(vectors)
        monkeypatch.undo()
        assert torch.equal(whole, parts)


def test_batches_that_are_cut_to_fit_give_the_same_to_rounding(single, ragged):
    vectors = torch.randn(ragged.size, 2, dtype=torch.float64)
    served = fs.hessian(ragged, distributed=True)
    expected, forms = served.forms(vectors)
    cut = fs.hessian(ragged, distributed=True)
    assert cut.served.space.halve()
    assert cut.served.space.halve()
    found, of_batches = cut.forms(vectors)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(of_batches, forms, rtol=1e-11, atol=1e-13)


def test_a_path_that_graph_cannot_replace_is_found(single, ragged, monkeypatch):
    """Where no graph can be kept, rank 0 tries the others."""

    def refused(self, batch):
        raise ValueError("no graph here")

    monkeypatch.setattr("fastscape.curvature.reverse.GraphPath.build", refused)
    served = fs.hessian(ragged, distributed=True)
    assert served.prepare(1).name in ("forward", "reverse")
    monkeypatch.undo()
    vector = torch.ones(ragged.size, dtype=torch.float64)
    torch.testing.assert_close(served @ vector, fs.hessian(ragged, distributed=False) @ vector, rtol=1e-12, atol=1e-14)


def test_memory_that_is_short_once_costs_time_and_no_accuracy(single, ragged, monkeypatch):
    vectors = torch.randn(ragged.size, 4, dtype=torch.float64)
    expected = fs.hessian(ragged, distributed=True) @ vectors
    plain, left = Products._over_batches, [1]

    def short(self, *arguments):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(self, *arguments)

    monkeypatch.setattr(Products, "_over_batches", short)
    served = fs.hessian(ragged, distributed=True)
    assert torch.equal(served @ vectors, expected)
    assert served.served.workers["out_of_memory"] == 1


def test_a_spectrum_says_who_multiplied(single, ragged):
    plain = fs.spectrum(ragged, 2, nodes=10, method="graph", distributed=False)
    found = fs.spectrum(ragged, 2, nodes=10, distributed=True)
    np.testing.assert_allclose(found.eigenvalues, plain.eigenvalues, rtol=1e-10)
    assert found.trace.value == pytest.approx(plain.trace.value, rel=1e-10)
    workers = found.meta["workers"]
    assert (workers["engine"], workers["size"], workers["batches"]) == ("torch gloo", 1, [[0, 1, 2]])
    assert "workers" not in plain.meta


def test_the_stability_of_an_optimizer_is_that_of_one_process(single, ragged):
    moves = torch.optim.SGD(ragged.model.named_parameters(), lr=0.1, momentum=0.5)
    plain = fs.spectrum(ragged, 2, nodes=10, method="graph", optimizer=moves, distributed=False)
    found = fs.spectrum(ragged, 2, nodes=10, optimizer=moves, distributed=True)
    assert found.stability.ratio == pytest.approx(plain.stability.ratio, rel=1e-9)
    assert found.stability.batch_sharpness.value == pytest.approx(plain.stability.batch_sharpness.value, rel=1e-9)


def test_spectra_of_checkpoints_are_shared(single, ragged, tmp_path):
    files = []
    for step in (1, 2):
        torch.save({name: step * tensor for name, tensor in ragged.model.state_dict().items()}, tmp_path / f"step{step}.pt")
        files.append(tmp_path / f"step{step}.pt")
    found = fs.spectra(ragged, files, 2, nodes=8, distributed=True)
    plain = fs.spectra(ragged, files, 2, nodes=8, method="graph", distributed=False)
    assert [point.meta["workers"]["size"] for point in found.points] == [1, 1]
    np.testing.assert_allclose(found.series("lambda_max")[0], plain.series("lambda_max")[0], rtol=1e-9)


def test_a_block_without_processes_is_a_plain_one(ragged):
    vector = torch.ones(ragged.size, dtype=torch.float64)
    with fs.serve(ragged, operator="ggn") as matrix:
        assert matrix.served is None
        assert torch.equal(matrix @ vector, fs.ggn(ragged, distributed=False) @ vector)
    with pytest.raises(KeyError), fs.serve(ragged):
        raise KeyError
    with (
        pytest.raises(ValueError, match="operator must be 'hessian' or 'ggn', got 'fisher'"),
        fs.serve(ragged, operator="fisher"),
    ):
        pass


def test_compiling_is_refused_on_several_processes(single, ragged):
    with pytest.raises(ValueError, match="compile must be False on several processes, got True; pass distributed=False"):
        fs.hessian(ragged, compile=True, distributed=True)


def test_calls_within_the_package_say_who_multiplies():
    """A default that waits for other processes must not be reached from a call that only rank 0 makes."""
    doors = {"hessian", "ggn", "spectrum", "mean_quadratic_form", "group_means", "make"}
    for file in Path(fs.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in doors:
                continue
            names = {word.arg for word in node.keywords}
            local = node.func.id == "make" and "memory" not in names  # another function of that name
            assert local or "distributed" in names, f"{file}:{node.lineno} must pass distributed="
