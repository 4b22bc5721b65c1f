"""The harness of the comparison with peers: failures are results, wrong answers are no successes, references are right."""

import numpy as np
import pytest
import torch
from peers import methods, problems, processes, products, reference, tables, tools
from torch.func import functional_call, hessian

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.func about itself
JOB = {"threads": 1, "folder": "absent"}


@pytest.fixture(scope="module")
def problem():
    return problems.Problem.tiny()


@pytest.fixture(scope="module")
def dense(problem):
    """The Hessian ``[D, D]`` in float64, rows in the order of the flat vector."""
    double = problem.in_double()
    weights = {name: tensor.detach() for name, tensor in double.model.named_parameters()}

    def loss(parameters):
        return double.criterion(functional_call(double.model, parameters, (double.batch[0],)), double.batch[1])

    blocks = hessian(loss)(weights)
    rows = [torch.cat([blocks[a][b].reshape(weights[a].numel(), -1) for b in weights], dim=1) for a in weights]
    return torch.cat(rows)


def test_truth_is_the_dense_hessian(problem, dense):
    vectors = problems.signs(problem.size, 3)
    torch.testing.assert_close(problems.Truth(problem).products(vectors), dense @ vectors.double(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [*methods.TORCH, *methods.OURS])
def test_every_method_multiplies_with_the_hessian(problem, dense, name):
    vectors = problems.signs(problem.size, 3)
    found, expected = methods.METHODS[name](problem)(vectors).double(), dense @ vectors.double()
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_reference_trace_is_the_trace(problem, dense, monkeypatch):
    truth, fast = problems.Truth(problem), methods.cached_graph(problem)
    exact = reference._trace(problem, truth, fast, probes=8, rank=4)
    assert exact["trace"] == pytest.approx(float(dense.trace()), rel=1e-9)
    assert exact["trace_stderr"] == 0
    monkeypatch.setattr(reference, "EXACT", 0)
    estimate = reference._trace(problem, truth, fast, probes=64, rank=40)
    assert abs(estimate["trace"] - exact["trace"]) < 4 * estimate["trace_stderr"]
    assert estimate["trace_stderr"] < 0.8 * estimate["probe_deviation"] / 64**0.5


def test_distance_of_a_measure_to_itself_is_zero_and_to_a_shifted_one_the_shift():
    known = {"nodes": [[0.0, 1.0], [0.5, 2.0]], "weights": [[0.4, 0.6], [0.9, 0.1]], "eigenvalues": [4.0]}
    nodes, weights = np.array(known["nodes"]), np.array(known["weights"])
    assert reference.distance(nodes, weights, known) == pytest.approx(0)
    assert reference.distance(nodes + 2, 3 * weights, known) == pytest.approx(0.5)


def test_probes_give_an_interval_of_five_percent():
    needed = tools.probes_needed({"probe_deviation": 3.0, "trace": -20.0})
    assert 1.96 * 3.0 / needed**0.5 <= 1.0 < 1.96 * 3.0 / (needed - 1) ** 0.5


def test_a_worker_that_raises_or_stalls_is_a_result():
    raised = processes.run(JOB | {"package": "training", "network": "absent"}, limit=60)
    assert raised.died == "exit status 1: KeyError: 'absent'"
    assert raised.method == "training"
    stalled = processes.run(JOB | {"package": "training", "network": "absent"}, limit=0.05)
    assert stalled.died == "no answer in 0.05 s"


def test_time_of_a_wrong_product_is_no_success():
    timed = {"kind": "time", "seconds": 2.0, "gradient": 1.0}
    checked = {"kind": "checked", "setup": 0.0, "first": 0.0}
    events = [checked | {"method": "right", "error": 1e-6}, checked | {"method": "off", "error": 2e-3}]
    outcome = processes.Outcome([*events, timed | {"method": "right"}, timed | {"method": "off"}])
    rows = products._table(outcome, 2)
    assert rows["right"]["gradients"] == 1.0
    assert "gradients" not in rows["off"]
    assert tables._cost(rows["off"]).startswith("wrong by 2.0e-03")
