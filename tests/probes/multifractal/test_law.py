"""The law of the directions goes with every multifractal result, and results of two laws are told apart."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.probes.multifractal.units import settings_of
from fastscape.reports.html import write_html


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    objective = fs.Objective(net, [(torch.randn(12, 6), torch.randint(0, 4, (12,)))], criterion=F.cross_entropy)
    settings = {"radii": (1e-3, 1e-2, 3e-2, 1e-1), "count": 4, "banks": 1, "precision": "difference"}
    analysis = fs.AnalysisSettings(bootstrap=10, permutations=9)
    return {rank: fs.multifractal(objective, fs.ProbeSettings(**settings, rank=rank), analysis) for rank in (None, 2)}


def test_results_tell_the_law_in_meta_tables_and_files(results, tmp_path):
    assert results[None].meta["law"] == "gaussian"
    again = fs.load(results[2].save(tmp_path / "result"))
    assert (again.probe.rank, again.meta["law"]) == (2, "gaussian of rank 2")
    assert "gaussian of rank 2, normalised per tensor" in write_html(again, tmp_path / "page.html").read_text()


def test_a_comparison_says_that_two_laws_do_not_compare(results):
    dense, thin = (fs.Signature.of(results[rank], name=str(rank)) for rank in (None, 2))
    words = "the multifractal results are along directions of different laws (gaussian, gaussian of rank 2) and do not compare"
    assert words in fs.compare([dense, thin]).notes
    assert not any("laws" in note for note in fs.compare([dense, dense]).notes)
    assert not any("laws" in note for note in fs.compare([thin, thin]).notes)


def test_a_result_of_another_law_is_not_continued(results):
    torch.manual_seed(0)
    assert settings_of(results[2].probe)["rank"] == 2
    assert "rank" not in settings_of(results[None].probe)  # as in journals of earlier versions


def test_responses_tell_the_law():
    objective = fs.Objective(nn.Linear(6, 4), [(torch.ones(3, 6), torch.zeros(3, 4))], criterion=F.mse_loss)
    found = fs.responses(objective, fs.Directions(objective, 2, rank=1), [0.1], precision="float64")
    assert found.law == found.meta["law"] == "gaussian of rank 1"


def test_a_bad_rank_is_named():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        fs.ProbeSettings(rank=0)
