"""Claims are decided by intervals over seeds, and say what they rest on."""

import subprocess
import sys

import numpy as np
import pytest

from fastscape.study.claims import claims, count_of, larger
from fastscape.study.result import StudyResult

LOW, HIGH = np.array([1.0, 1.1, 0.9]), np.array([100.0, 130.0, 90.0])


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [(HIGH, LOW, "seen"), (LOW, HIGH, "not seen"), (LOW, np.array([0.5, 1.0, 2.0]), "inconclusive")],
)
def test_an_order_is_seen_where_the_interval_of_the_ratio_leaves_one(first, second, outcome):
    found, evidence = larger({"a": first, "b": second}, "a", "b")
    assert found == outcome
    assert "ratio in [" in evidence


def test_values_of_both_signs_are_compared_by_their_difference():
    found, evidence = larger({"a": HIGH, "b": np.array([-1.0, 0.0, 1.0])}, "a", "b")
    assert found == "seen"
    assert "difference in [" in evidence


def test_the_ratio_is_welchs():
    from scipy import stats

    found = stats.ttest_ind(np.log(HIGH), np.log(LOW), equal_var=False).confidence_interval()
    _, evidence = larger({"a": HIGH, "b": LOW}, "a", "b")
    assert f"[{np.exp(found.low):.3g}, {np.exp(found.high):.3g}]" in evidence


def test_one_seed_or_a_missing_architecture_is_not_measured():
    assert larger({"a": HIGH[:1], "b": LOW}, "a", "b")[0] == "not measured"
    assert larger({"a": HIGH}, "a", "b") == ("not measured", "b was not studied")
    assert larger({"a": np.full(3, np.nan), "b": LOW}, "a", "b")[0] == "not measured"


def test_a_claim_about_every_run_is_inconclusive_where_runs_differ():
    assert count_of({"a": LOW, "b": HIGH}, lambda row: row < 50, "small")[0] == "inconclusive"
    assert count_of({"a": LOW}, lambda row: row < 50, "small") == ("seen", "small in 3 of 3 runs")
    assert count_of({"a": LOW}, lambda row: row > 50, "large")[0] == "not seen"
    assert count_of({"a": np.array([np.nan])}, lambda row: row > 0, "x")[0] == "not measured"


def test_every_claim_has_an_outcome_without_any_number():
    found = claims({}, 1e-2)
    assert len(found) == 10
    assert {claim.outcome for claim in found} == {"not measured"}


def test_repeated_eigenvalues_are_not_seen_where_gaps_are_resolved():
    resolved = {name: np.ones(3) for name in ("MLP", "ResNet-18")}
    assert claims({"resolved": resolved}, 1e-2)[0].outcome == "not seen"


def test_running_statistics_decide_nothing_and_are_told():
    values = {"trace": {"MLP": HIGH, "ResNet-18": LOW}}
    plain = next(claim for claim in claims(values, 1e-2) if "trace of ResNet-18" in claim.claim)
    beside = {"trace": {"ResNet-18": 100 * HIGH}}
    found = next(claim for claim in claims(values, 1e-2, beside) if "trace of ResNet-18" in claim.claim)
    assert (plain.outcome, found.outcome) == ("not seen", "not seen")
    assert found.evidence.startswith(f"{plain.evidence}; by running statistics seen: ResNet-18 1.07e+04")
    other = next(claim for claim in claims(values, 1e-2, beside) if "Transformer is flat" in claim.claim)
    assert "running" not in other.evidence


PLAN = {"networks": {}, "optimizers": {}, "early": 0.1, "epsilon": 0.1}


def test_a_saved_study_is_loaded_by_a_process_that_has_made_none(tmp_path):
    StudyResult("quick", None, PLAN, (), {}, {}).save(tmp_path / "study.npz")
    code = f"import fastscape as fs; print(type(fs.load({str(tmp_path / 'study.npz')!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "StudyResult", done.stderr


@pytest.mark.parametrize(
    ("found", "bound", "outcome"),
    [
        ([2e-4, 5e-5], [3e-4, 6e-5], "not seen"),
        ([5e-5, 5e-5], [9e-5, 8e-5], "seen"),
        ([5e-5, 5e-5], [9e-5, 2e-4], "inconclusive"),
    ],
)
def test_a_lower_bound_alone_shows_no_flatness(found, bound, outcome):
    values = {"normalized_sharpness": {"MLP": np.array(found)}, "normalized_sharpness_bound": {"MLP": np.array(bound)}}
    assert next(claim for claim in claims(values, 1e-2) if "sharpness" in claim.claim).outcome == outcome
