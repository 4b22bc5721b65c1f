"""``fastscape multifractal``: table, files, settings, checkpoints, targets, precision; and its former name."""

import json
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main
from fastscape.curvature.products import Products
from fastscape.runs.journal import Journal

FAST = ("--radii", "1e-3:1e-1:8", "--count", "4", "--banks", "2", "--method", "loop")
SMALL = ("--radii", "1e-6:1e-1:6", "--count", "3", "--banks", "2")
DIGITS = ("--data", "zoo:digits?samples=32")


def fastscape(*arguments):
    return CliRunner().invoke(main, ["multifractal", *(str(argument) for argument in arguments)])


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    zoo.train(zoo.mlp(hidden=(8,)), zoo.digits(samples=64), tmp_path / "run", steps=12, checkpoints=3)
    return tmp_path / "run"


def test_it_prints_a_table_and_writes_the_three_files(tmp_path):
    done = fastscape("zoo:mlp", *DIGITS, *FAST, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "M_tau" in done.stdout
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["report.html", "result.json", "result.npz"]
    result = fs.load(tmp_path / "out" / "result.npz")
    assert result.directions == 8
    assert json.loads((tmp_path / "out" / "result.json").read_text())["verdict"] == result.verdict()


def test_json_on_stdout_is_only_json():
    done = fastscape("zoo:mlp", *DIGITS, *FAST, "--json")
    document = json.loads(done.stdout)
    assert document["meta"]["stop_reason"] == "all directions done"
    assert document["analysis"]["estimates"]["m_tau"]["n"] == 8
    assert done.stderr == ""


def test_checkpoints_come_in_order_from_files_and_directories(run):
    done = fastscape("zoo:mlp?hidden=(8,)", *DIGITS, *FAST, "--checkpoint", run, "--json")
    assert done.exit_code == 0, done.stderr
    assert [point["name"] for point in json.loads(done.stdout)["points"]] == ["step0", "step1", "step12"]
    files = [run / "step12.safetensors", run / "step0.safetensors"]
    given = fastscape("zoo:mlp?hidden=(8,)", *DIGITS, *FAST, "--checkpoint", files[0], "--checkpoint", files[1], "--json")
    assert [point["step"] for point in json.loads(given.stdout)["points"]] == [12, 0]


def test_options_reach_the_settings():
    done = fastscape(
        *("zoo:mlp", *DIGITS, "--radii", "1e-3,1e-2,3e-2,1e-1", "--count", 3, "--banks", 1, "--seed", 7, "--json"),
        *("--normalize", "filter", "--distribution", "rademacher", "--scale", "unit", "--one-d", "same", "--variant", "odd"),
        *(
            "--rank",
            2,
            "--q=-1,0.5,2,3",
            "--window",
            "0:4",
            "--precision",
            "float64",
            "--params",
            "*.weight",
            "--batch-norm",
            "batch",
        ),
    )
    document = json.loads(done.stdout)
    probe, analysis = document["probe"], document["analysis"]["settings"]
    assert probe["radii"] == [1e-3, 1e-2, 3e-2, 1e-1]
    assert (probe["count"], probe["banks"], probe["seed"]) == (3, 1, 7)
    assert (probe["normalize"], probe["distribution"], probe["scale"], probe["one_d"]) == ("filter", "rademacher", "unit", "same")
    assert (probe["rank"], document["meta"]["law"]) == (2, "rademacher of rank 2")
    assert analysis["q"] == [-1, 0, 0.5, 1, 2, 3]
    assert analysis["windows"] == [[0, 4]]
    assert analysis["variant"] == "odd"
    assert document["meta"]["parameters"] == 64 * 128 + 128 * 64 + 64 * 10
    assert document["meta"]["batch_norm"] == "batch"


def test_a_preset_is_taken_and_changed_by_options():
    done = fastscape("zoo:mlp", *DIGITS, "--preset", "torok2026", "--count", 2, "--json")
    document = json.loads(done.stdout)
    assert document["probe"]["scale"] == "unit"
    assert document["probe"]["banks"] == 8
    assert len(document["analysis"]["windows"]) == 8
    assert document["probe"]["count"] == 2


def test_resnet18_comes_within_its_budget_and_says_when_weights_are_nan(tmp_path, monkeypatch, clock):
    from torchvision.models import ResNet

    forward = ResNet.forward

    def timed(model, x):
        clock.now += 0.25
        return forward(model, x)

    monkeypatch.setattr(ResNet, "forward", timed)
    arguments = ("--data", "zoo:digits?samples=4&size=32&channels=3", "--budget", "25s", "--radii", "1e-3:1e-1:4", "--json")
    done = fastscape("torchvision:resnet18?num_classes=10", *arguments, "--precision", "float64", "--method", "loop")
    assert done.exit_code == 0, done.stderr
    meta = json.loads(done.stdout)["meta"]
    assert meta["stop_reason"] == "deadline"
    assert meta["budget"] == 25
    assert 20 < meta["seconds"] <= 25
    (tmp_path / "broken.py").write_text(
        "import torch, torchvision\n\ndef make():\n    model = torchvision.models.resnet18(num_classes=10)\n"
        "    torch.nn.init.constant_(model.fc.weight, float('nan'))\n    return model\n"
    )
    broken = fastscape(f"{tmp_path}/broken.py:make", *arguments[:2], "--count", 2, "--banks", 1, "--radii", "1e-3:1e-1:4")
    assert broken.exit_code == 0, broken.stderr
    assert "weights hold NaN or inf in fc.weight" in broken.stdout
    assert "No multifractal numbers" in broken.stdout


def test_an_unreached_target_has_its_exit_code_and_keeps_the_result():
    done = fastscape("zoo:mlp", *DIGITS, *FAST, "--target", "1e-9")
    assert done.exit_code == 3
    assert "the target 1e-09 was not reached (all directions done)" in done.stderr
    assert "M_tau" in done.stdout


def test_checkpoints_that_do_not_fit_are_exit_code_2(run):
    (run / "bad.pt").write_bytes(b"not a checkpoint")
    done = fastscape("zoo:mlp?hidden=(8,)", *DIGITS, "--checkpoint", run / "bad.pt")
    assert done.exit_code == 2
    assert "bad.pt" in done.stderr
    wrong = fastscape("zoo:mlp?hidden=(9,)", *DIGITS, "--checkpoint", run / "step0.safetensors")
    assert wrong.exit_code == 2
    assert "1.weight has shape (8, 64), the model (9, 64)" in wrong.stderr


def test_extend_continues_a_saved_run(tmp_path):
    fastscape("zoo:mlp", *DIGITS, *FAST, "--out", tmp_path / "a")
    more = [*FAST]
    more[3] = "6"
    done = fastscape("zoo:mlp", *DIGITS, *more, "--extend", tmp_path / "a" / "result.npz", "--json")
    assert json.loads(done.stdout)["analysis"]["estimates"]["m_tau"]["n"] == 12
    other = fastscape("zoo:cnn", *DIGITS, *more, "--extend", tmp_path / "a" / "result.npz")
    assert other.exit_code == 2
    assert "got other weights" in other.stderr


def test_a_run_by_difference_propagation_end_to_end(tmp_path):
    model = ("zoo:mlp?hidden=(8,)", *DIGITS, *SMALL)
    done = fastscape(*model, "--precision", "difference", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    meta = json.loads(done.stdout)["meta"]
    assert (meta["precision"], meta["precision_reason"], meta["path"]["name"]) == ("difference", "asked for", "graph")
    result = fs.load(tmp_path / "out" / "result.npz")
    assert result.meta["precision"] == "difference"
    assert result.analysis.trust.mask.all()
    even = fastscape(*model, "--precision", "float64", "--out", tmp_path / "exact")
    assert even.exit_code == 0, even.stderr
    truth = fs.load(tmp_path / "exact" / "result.npz").measured
    np.testing.assert_allclose(result.measured.even[:, -1], truth.even[:, -1], rtol=1e-4)
    more = [*model[:3], *SMALL[:2], "--count", "5", *SMALL[4:]]
    extended = fastscape(*more, "--extend", tmp_path / "out" / "result.npz", "--json")
    assert extended.exit_code == 0, extended.stderr
    assert json.loads(extended.stdout)["meta"]["precision"] == "difference"


def test_the_chosen_precision_and_why_are_in_the_json():
    done = fastscape("zoo:mlp?hidden=(8,)", *DIGITS, "--radii", "1e-9:1e-7:4", "--count", "2", "--banks", "1", "--json")
    meta = json.loads(done.stdout)["meta"]
    assert meta["precision"] == "difference"
    assert "float64: rounding noise at radii up to" in meta["precision_reason"]


def test_a_precision_that_does_not_exist_or_cannot_be_is_bad_input(tmp_path, monkeypatch):
    unknown = fastscape("zoo:mlp", *DIGITS, *SMALL, "--precision", "half")
    assert unknown.exit_code == 2
    assert "precision must be one of float64, float32, difference, difference-bf16 or None, got 'half'" in unknown.stderr
    mixed = fastscape("zoo:mlp", *DIGITS, *SMALL, "--precision", "difference", "--method", "loop")
    assert mixed.exit_code == 2
    assert "method must be 'graph', 'dispatch' or None with precision='difference', got 'loop'" in mixed.stderr


def test_the_former_name_says_once_that_it_goes_and_is_the_same_command():
    old = CliRunner().invoke(main, ["probe", "zoo:mlp", *DIGITS, *FAST, "--json"])
    assert old.exit_code == 0, old.stderr
    assert old.stderr.count("DeprecationWarning: fastscape probe is now fastscape multifractal") == 1
    values = [json.loads(done.stdout)["analysis"] for done in (old, fastscape("zoo:mlp", *DIGITS, *FAST, "--json"))]
    assert values[0] == values[1]
    assert CliRunner().invoke(main, ["probe", "zoo:mlp", *DIGITS, *FAST, "--target", "1e-9"]).exit_code == 3
    assert main.commands["probe"].params == main.commands["multifractal"].params
    listed = CliRunner().invoke(main, ["--help"]).stdout
    assert "\n  multifractal " in listed
    assert "\n  probe " not in listed


def test_a_run_that_ended_in_its_spectra_goes_on_in_its_spectra(tmp_path, monkeypatch):
    """No product and no direction is made again, and the numbers are those of a run that nothing disturbed."""
    real, made, append, units, ends = Products._multiply, [], Journal.append, [], [-1]

    def multiply(products, rows, *more):
        if len(made) == ends[0]:
            raise KeyboardInterrupt
        made.append(len(rows))
        real(products, rows, *more)

    monkeypatch.setattr(Products, "_multiply", multiply)
    monkeypatch.setattr(Journal, "append", lambda *given: (units.append(given[1]), append(*given))[1])
    monkeypatch.setattr("fastscape.cli.output.write_page", lambda *_: None)
    torch.manual_seed(0)
    torch.save(zoo.mlp(hidden=(3,)).state_dict(), tmp_path / "3.pt")
    command = ("zoo:mlp?hidden=(3,)", *DIGITS, *FAST, "--checkpoint", tmp_path / "3.pt", "--params", "3.*", "--spectrum")
    assert fastscape(*command, "--out", tmp_path / "alone").exit_code == 0
    resumed = (*command, "--resume", tmp_path / "journal", "--out", tmp_path / "out")
    alone, ends[0] = len(made), len(made) + 9
    stopped = fastscape(*resumed)
    assert (stopped.exit_code, units, len(made)) == (130, [], alone + 9)
    ends[0] = -1
    done = fastscape(*resumed)
    assert done.exit_code == 0, done.stderr
    counts = len(made), len(units)
    assert counts[0] == 2 * alone
    assert fastscape(*resumed).exit_code == 0
    assert (len(made), len(units)) == counts
    assert counts[1] == len(set(units)) > 0
    for name, numbers in (("spectrum", ("eigenvalues", "trace", "residuals")), ("result", ("analysis",))):
        found, other = (fs.load(tmp_path / folder / f"{name}.npz").to_dict() for folder in ("out", "alone"))
        for one, two in zip(found["points"], other["points"], strict=True):
            assert [one[number] for number in numbers] == [two[number] for number in numbers]
    refused = fastscape(*command, "--resume", tmp_path / "journal", "--seed", 4)
    assert refused.exit_code == 2
    assert "spectrum' is of other seed; use another folder" in " ".join(refused.stderr.split())
    assert len(fs.merge(tmp_path / "journal").points) == 1


class Here:
    """A pool that works at once, in place of new processes."""

    def __init__(self, count, **_options):
        Here.counts.append(count)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def submit(self, function, argument):
        found = Future()
        found.set_result(function(argument))
        return found


def test_workers_make_the_model_from_its_names_and_give_the_same_numbers(tmp_path, monkeypatch):
    Here.counts = []
    monkeypatch.setattr("fastscape.cli.output.write_page", lambda *_: None)
    monkeypatch.setattr("fastscape.cli.multifractal.ProcessPoolExecutor", Here)
    command = ("zoo:mlp", *DIGITS, *FAST, "--params", "1.*", "--criterion", "cross_entropy")
    alone = fastscape(*command, "--out", tmp_path / "alone")
    shared = fastscape(*command, "--workers", 3, "--out", tmp_path / "shared")
    assert (alone.exit_code, shared.exit_code) == (0, 0), shared.stderr
    one, other = (fs.load(tmp_path / folder / "result.npz") for folder in ("alone", "shared"))
    np.testing.assert_array_equal(one.measured.even, other.measured.even)
    assert other.meta["workers"]["engine"].endswith("Here")
    assert Here.counts == [3]
    monkeypatch.setattr("fastscape.cli.multifractal.rank_of", lambda _distributed: 0)
    refused = fastscape(*command, "--workers", 2)
    assert refused.exit_code == 2
    assert "--workers must be left out under torchrun" in " ".join(refused.stderr.split())


@pytest.mark.slow
def test_workers_are_processes_of_their_own(tmp_path):
    command = ("zoo:mlp", *DIGITS, *FAST)
    assert fastscape(*command, "--out", tmp_path / "alone").exit_code == 0
    done = fastscape(*command, "--workers", 2, "--out", tmp_path / "shared")
    assert done.exit_code == 0, done.stderr
    one, other = (fs.load(tmp_path / folder / "result.npz") for folder in ("alone", "shared"))
    np.testing.assert_array_equal(one.measured.even, other.measured.even)
