"""A small study from training to page: resumed, interrupted, damaged, saved and shown."""

import dataclasses
import json
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from norms import data, net, objective, top
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main
from fastscape.cli import study as command
from fastscape.reports.html import write_html
from fastscape.runs.optimizers import OptimizerState
from fastscape.study import study as driver
from fastscape.study.measure import Measurement
from fastscape.study.plan import quick, slug
from fastscape.study.result import RunResult, StudyResult
from fastscape.study.training import TrainingOutcome
from fastscape.study.view import table1

DIGITS = partial(zoo.digits, samples=128)


def tiny(seeds=2):
    """The quick plan, of few steps and small networks."""
    mlp, resnet, transformer = quick().architectures
    text = partial(zoo.pydoc_text, samples=16, batch_size=16, context=8)
    architectures = (
        dataclasses.replace(mlp, build=partial(zoo.mlp, hidden=(8,)), train=DIGITS, test=DIGITS, probed=DIGITS, steps=20),
        dataclasses.replace(resnet, build=partial(zoo.resnet18, channels=1, width=2), train=DIGITS, probed=DIGITS, steps=4),
        dataclasses.replace(
            transformer,
            build=partial(zoo.tiny_transformer, width=8, context=8),
            train=text,
            test=text,
            probed=text,
            steps=8,
            batch_size=8,
        ),
    )
    plan = dataclasses.replace(quick(seeds), architectures=architectures, seconds=4.0, plane=5, lines=3, line_points=7)
    return dataclasses.replace(plan, points=3, norms=2, k=2, share=5.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of an MLP and a Transformer, with its directory and plan."""
    out = tmp_path_factory.mktemp("study")
    plan = tiny().only(("mlp", "tiny-transformer"))
    told = []
    return driver.study(plan, out, progress=told.append), out, plan, told


def test_every_run_has_its_signatures_record_and_outcome(whole):
    result, _, plan, told = whole
    assert [run.name for run in result.runs] == [
        "MLP, seed 0",
        "MLP, seed 1",
        "Tiny Transformer, seed 0",
        "Tiny Transformer, seed 1",
    ]
    for run in result.runs:
        assert np.isfinite(run.outcome.test_loss)
        assert run.early.step == run.early_step < run.final.step == run.step
        assert run.final.trace.value != run.early.trace.value
        assert run.parts["difficulty"].step == run.step
        assert run.parts["tracking"].points
        assert run.final.barrier.value >= 0
        assert "barrier" not in run.final.missing
    assert "final.plane" in result.runs[0].parts
    assert "final.plane" not in result.runs[1].parts
    shares = [state.fraction for state in told]
    assert shares == sorted(shares)
    assert plan.words() == result.plan


def test_a_second_study_reads_the_runs_of_the_first(whole, monkeypatch):
    result, out, plan, _ = whole
    monkeypatch.setattr(driver, "train", None)
    again = driver.study(plan, out)
    assert [run.outcome for run in again.runs] == [run.outcome for run in result.runs]
    assert again.values("trace")["MLP"].tolist() == result.values("trace")["MLP"].tolist()


def test_a_damaged_run_or_one_of_another_plan_is_repeated(whole, monkeypatch, tmp_path):
    _, out, plan, _ = whole
    repeated = []
    monkeypatch.setattr(driver, "train", lambda *_, seed, **__: repeated.append(seed) or pytest.fail("trains"))
    other = dataclasses.replace(plan, epsilon=0.5)
    with pytest.raises(BaseException, match="trains"):
        driver.study(other, out)
    folder = driver.folder_of(tmp_path, plan.architectures[0], 0)
    folder.mkdir(parents=True)
    (folder / "run.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(BaseException, match="trains"):
        driver.study(plan, tmp_path)
    shutil.copytree(out, tmp_path / "again")
    weights = driver.folder_of(tmp_path / "again", plan.architectures[0], 0) / "final.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BaseException, match="trains"):
        driver.study(plan, tmp_path / "again")
    assert repeated == [0, 0, 0]


def test_an_interrupted_study_keeps_the_runs_that_are_complete(whole, monkeypatch):
    _, out, plan, _ = whole
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return kept(*arguments)

    kept = driver.run
    monkeypatch.setattr(driver, "run", interrupted)
    result = driver.study(plan, out)
    assert len(result.runs) == 1
    assert result.meta["stop_reason"] == "interrupted"
    assert "interrupted after 1 run" in result.notes[0]


def test_a_part_that_raises_leaves_a_note_and_the_rest(tmp_path, monkeypatch):
    from fastscape.study import measure

    def broken(*_, **__):
        raise RuntimeError("no spectrum today")

    monkeypatch.setattr(measure, "spectrum", broken)
    result = driver.study(tiny(1).only(("mlp",)), tmp_path)
    run = result.runs[0]
    assert any("no spectrum today" in note for note in run.notes)
    assert run.final.trace is None
    assert "no spectrum today" in run.final.missing["trace"]
    assert run.final.normalized_sharpness is not None
    assert not result.barriers


def test_tables_claims_and_associations_follow_the_runs(whole):
    result, *_ = whole
    assert set(result.across("trace")) == {"MLP", "Tiny Transformer"}
    logs = np.log(result.values("trace")["MLP"])
    assert result.across("trace")["MLP"].value == pytest.approx(np.exp(logs.mean()))
    outcomes = {claim.claim[:30]: claim.outcome for claim in result.claims()}
    assert outcomes["The trace of ResNet-18 far exc"] == "not measured"
    assert len(result.associations()) == 9
    text = str(result)
    for words in ("Table 1", "The source's claims", "Hypothesis H5", "Early warnings"):
        assert words in text


def test_a_study_is_saved_read_back_and_shown_without_network(whole, tmp_path):
    result, *_ = whole
    again = fs.load(result.save(tmp_path / "study"))
    assert again.values("lambda_max")["MLP"].tolist() == result.values("lambda_max")["MLP"].tolist()
    assert json.loads(again.to_json())["name"] == "quick"
    page = write_html(again, tmp_path / "study.html").read_text()
    for name in ("MLP", "Tiny Transformer"):
        assert f">{name}</a>" in page
    for outside in ("<script", "<link", "src=", "@import", "url(http"):
        assert outside not in page


def test_a_process_that_has_not_heard_of_studies_loads_one(whole, tmp_path):
    file = whole[0].save(tmp_path / "study")
    script = f"import fastscape as fs; print(fs.load({str(file)!r}).verdict())"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == whole[0].verdict(), found.stderr


def test_networks_with_batch_norm_are_signed_by_both_statistics_and_judged_by_the_batch_s():
    model = net()
    plan = dataclasses.replace(quick(1), seconds=20.0, lines=2, line_points=5, plane=5, k=1)
    architecture = dataclasses.replace(plan.architectures[0], name="Normed", batch_size=12)
    moves = OptimizerState.of(torch.optim.SGD(model.parameters(), lr=0.1), model)
    measurement = Measurement(plan, architecture, moves, 24, method=None, report=lambda _: None)
    made = objective(model)
    signed, found = measurement.signed(made, "early", 3)
    signatures, beside = measurement.running(made, "early", 3)
    running = signatures["early"]
    assert signed.lambda_max.value == pytest.approx(top(model, data(), "batch"), rel=1e-3)
    assert signed.stability_ratio.value == pytest.approx(top(model, data(), "batch") * 0.05, rel=1e-3)
    assert running.lambda_max.value == pytest.approx(top(model, data(), "running"), rel=1e-3)
    assert running.stability_ratio is None
    assert "early.temperature" in found
    assert set(beside) == {f"early.running.{part}" for part in ("spectrum", "slice", "sharpness")}
    plain = fs.Objective(zoo.mlp(hidden=(2,)), zoo.digits(samples=8), criterion=F.cross_entropy)
    assert measurement.running(plain, "early", 3) == ({}, {})
    outcome = TrainingOutcome(1.0, 1.0, None, 1.0, 1.0)
    run = RunResult(
        "Normed, seed 0", 9, "Normed", 0, 63, 3, outcome, np.ones(9), signed, signed, {}, {}, running={"early": running}
    )
    words = plan.words() | {"networks": {"Normed": ""}, "optimizers": {"Normed": ""}}
    table = table1(StudyResult("quick", None, words, (run,), {}, {}))
    assert [row["model"] for row in table.rows] == ["Normed", "Normed, running statistics"]
    assert table.rows[0]["lambda_max"].startswith(f"{signed.lambda_max.value:.3g}")
    assert table.rows[1]["lambda_max"].startswith(f"{running.lambda_max.value:.3g}")


def test_the_command_writes_page_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr("fastscape.study.plan.quick", lambda seeds=1: tiny(seeds))
    arguments = ["study", "--quick", "--seeds", "1", "--architecture", "mlp", "--out", str(tmp_path / "out"), "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "Table 1" in result.output
    for name in ("study.html", "study.npz", "study.json"):
        assert (tmp_path / "out" / name).is_file()
    refused = CliRunner().invoke(main, ["study", "--quick", "--seeds", "0"])
    assert refused.exit_code == 2
    assert "0 is not in the range" in refused.output


def test_architectures_are_chosen_by_the_names_of_the_options():
    assert [slug(each) for each in quick().architectures] == command.ARCHITECTURES
