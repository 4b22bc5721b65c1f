"""The study of coverage: closed forms of its populations, its counts, its page and its resumption."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from benchmarks.coverage import __main__ as study
from benchmarks.coverage import multifractal, populations
from benchmarks.coverage.cells import Cell
from benchmarks.coverage.page import page

Q = np.array([-0.5, 0.5, 1.0, 1.5, 2.0])
CLOSED = [
    populations.lognormal(0.1),
    populations.gamma_cascade(25.0),
    populations.laplace(0.1),
    populations.bimodal(),
    populations.weibull(3.0),
]


@pytest.mark.parametrize("population", CLOSED, ids=lambda population: population.name)
def test_closed_forms_are_those_of_many_directions(population):
    drawn = dataclasses.replace(population, log_moments=None, large=100_000).truth(Q)
    exact = dataclasses.replace(population, large=1000).truth(Q)
    for name in ("tau", "alpha", "f"):
        np.testing.assert_allclose(drawn[name], exact[name], rtol=0.05, atol=2e-3)


def test_shares_have_binomial_errors():
    cell = Cell("c2", "walk", 64, 0.95, 200, 160, 152)
    assert cell.share == 0.95
    assert cell.withheld == pytest.approx(0.2)
    assert cell.wrong == pytest.approx(0.04)
    assert cell.error == pytest.approx(np.sqrt(0.95 * 0.05 / 160), rel=0.1)
    assert Cell("c2", "walk", 64, 0.95, 200, 200, 200).error > 0
    assert np.isnan(Cell("c2", "walk", 64, 0.95, 200, 0, 0).share)


def test_an_interval_counts_where_it_is_published_and_holds_the_truth():
    population = populations.lognormal(0.1)
    small = dataclasses.replace(population, large=1000)
    cells = {cell.quantity: cell for cell in multifractal.coverage(small, {}, 64, 3, [0])}
    assert cells["c2"].reported == cells["m_tau_supported"].reported == 3
    assert cells["alpha_width"].reported == cells["tau(2)"].reported == 0
    assert all(cell.covered <= cell.reported <= cell.repetitions == 3 for cell in cells.values())
    wrong = {name: value + 100 for name, value in small.truth(np.array(multifractal.fs.AnalysisSettings().q)).items()}
    assert all(
        cell.covered == 0 for cell in multifractal.coverage(small, wrong, 64, 2, [0]) if not cell.quantity.startswith("m_tau")
    )


def test_rejections_are_counted_per_test():
    cells = multifractal.rejections("walk", lambda rng, n: next(iter(multifractal.changes()))[1](rng, n), 128, 3, [0])
    assert [cell.quantity for cell in cells] == ["p of c2 = 0", "split-half p"]
    assert cells[0].covered == 3  # sigma 0.01: always found


def test_the_page_tells_the_lowest_the_withheld_and_the_false_alarms():
    cells = [
        Cell("c2", "walk", 64, 0.95, 200, 200, 190),
        Cell("c2", "network", 64, 0.95, 200, 100, 91),
        Cell("c2", "selected", 64, 0.95, 200, 3, 0),
        Cell("p of c2 = 0", "nothing", 64, 0.05, 600, 600, 30),
        Cell("p of c2 = 0", "change: walk", 64, 0.05, 200, 200, 199),
    ]
    text = page(cells, {"repetitions": 200, "seed": 3})
    assert "| 64 | 2 | 93.0 | 91.0 ± 3.0 (network) | 95.0 ± 1.6 (walk) | 49 % | 5.0 % |" in text
    assert "| selected | 64 | 95 | 0.0 ± " in text
    assert "| p of c2 = 0 | nothing | 5.0 ± 0.9 |" in text
    assert "| p of c2 = 0 | change: walk | 99.5 ± " in text
    assert "Seed 3." in text


def test_a_study_resumes_after_its_finished_jobs(tmp_path, monkeypatch):
    calls = []

    def jobs(repetitions, seed):
        for name in ("one", "two"):
            yield name, lambda name=name: calls.append(name) or [Cell(name, "walk", 64, 0.95, repetitions, repetitions, seed)]

    monkeypatch.setattr(study, "jobs", jobs)
    monkeypatch.setattr(study, "ROOT", tmp_path)
    for arguments, expected in ((["--only", "one"], ["one"]), ([], ["one", "two"]), ([], ["one", "two"])):
        monkeypatch.setattr(sys, "argv", ["coverage", "--repetitions", "7", *arguments])
        study.main()
        assert calls == expected
    stored = json.loads((tmp_path / "benchmarks/results/coverage.json").read_text())
    assert stored["settings"] == {"repetitions": 7, "seed": 0}
    assert (tmp_path / "docs/coverage.md").read_text().startswith("# Coverage")
    monkeypatch.setattr(sys, "argv", ["coverage", "--repetitions", "8"])
    study.main()
    assert calls == ["one", "two", "one", "two"]
