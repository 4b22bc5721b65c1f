"""``fastscape spectrum`` and ``probe --spectrum``: files, tables, targets, exit codes, nothing lost."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main
from fastscape.cli.budgets import run_budget
from fastscape.curvature.products import Products
from fastscape.probes.multifractal import leads
from fastscape.probes.spectrum import trajectory
from fastscape.probes.spectrum import words as spectrum_tables
from fastscape.runs.budget import Budget, parse_seconds

MODEL = "zoo:mlp?hidden=(4,)"
DIGITS = ("--data", "zoo:digits?samples=32")
FAST = ("--radii", "1e-3:1e-1:6", "--count", "3", "--banks", "1")
WIDE = ("--target-trace", "0.9", "--tolerance", "0.1", "--nodes", "20")  # soon met


def fastscape(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    zoo.train(zoo.mlp(hidden=(4,)), zoo.digits(samples=64), folder, steps=12, checkpoints=3)
    return folder


def objective():
    """What MODEL and DIGITS name: the weights are those of seed 0."""
    torch.manual_seed(0)
    return fs.Objective(zoo.mlp(hidden=(4,)), zoo.digits(samples=32), criterion=F.cross_entropy)


def test_a_spectrum_is_that_of_the_dense_hessian_in_table_and_files(tmp_path):
    done = fastscape("spectrum", MODEL, *DIGITS, "--out", tmp_path / "out", "--seed", 3)
    assert done.exit_code == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["spectrum.html", "spectrum.json", "spectrum.npz"]
    result = fs.load(tmp_path / "out" / "spectrum.npz")
    operator = fs.hessian(objective())
    dense = (operator @ torch.eye(operator.shape[0])).double().numpy()
    np.testing.assert_allclose(result.lambda_max, np.linalg.eigvalsh((dense + dense.T) / 2)[-1], rtol=1e-3)
    assert "lambda_max" in done.stdout
    assert result.verdict() in " ".join(done.stdout.split())
    assert json.loads((tmp_path / "out" / "spectrum.json").read_text())["verdict"] == result.verdict()
    assert "<svg" in (tmp_path / "out" / "spectrum.html").read_text()
    assert result.meta["seed"] == 3


def test_json_on_stdout_is_only_json():
    done = fastscape("spectrum", MODEL, *DIGITS, *WIDE, "--k", 2, "--operator", "ggn", "--json")
    document = json.loads(done.stdout)
    assert document["operator"] == "ggn"
    assert len(document["eigenvalues"]) == 2
    assert done.stderr == ""


def test_checkpoints_make_a_trajectory_with_the_optimizers_beside_them(run):
    done = fastscape("spectrum", MODEL, *DIGITS, *WIDE, "--checkpoint", run, "--json")
    assert done.exit_code == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert [(point["name"], point["step"]) for point in points] == [("step0", 0), ("step1", 1), ("step12", 12)]
    assert [point["stability"]["optimizer"] for point in points] == ["Adam"] * 3
    given = fastscape("spectrum", MODEL, *DIGITS, *WIDE, "--checkpoint", run, "--learning-rate", 0.5, "--momentum", 0.9, "--json")
    stability = json.loads(given.stdout)["points"][-1]["stability"]
    assert stability["optimizer"] == "SGD"
    assert stability["critical"] == pytest.approx((2 + 2 * 0.9) / 0.5)


def test_an_optimizer_file_gives_the_stability_ratio(run):
    last = run / "step12.safetensors"
    done = fastscape(
        *("spectrum", MODEL, *DIGITS, *WIDE, "--checkpoint", last, "--optimizer", run / "step12.optimizer.pt"),
    )
    assert done.exit_code == 0, done.stderr
    single = fastscape("spectrum", MODEL, *DIGITS, *WIDE, "--learning-rate", "0.1")
    assert "stability ratio" in single.stdout
    assert "at the edge of SGD, learning rate 0.1" in " ".join(single.stdout.split())


def test_an_unreached_target_has_its_exit_code_and_keeps_the_result(monkeypatch):
    """The targets that were asked for are compared with the numbers of the result."""
    real = fs.spectrum

    def stopped(*arguments, **settings):
        import dataclasses

        result = real(*arguments, **settings)
        trace = fs.Estimate(2.0, 0.5, (1.0, 3.0), 4)
        converged = np.zeros(len(result.converged), dtype=bool)
        return dataclasses.replace(result, trace=trace, converged=converged, meta=result.meta | {"stop_reason": "deadline"})

    monkeypatch.setattr("fastscape.spectrum", stopped)
    done = fastscape("spectrum", MODEL, *DIGITS, *WIDE, "--k", 3)
    assert done.exit_code == 3
    assert "a target was not reached (deadline): " in done.stderr
    assert f"0 of 3 eigenvalues of {MODEL} converged to 0.1" in done.stderr
    assert "the trace" not in done.stderr
    narrow = fastscape("spectrum", MODEL, *DIGITS, "--target-trace", "0.4")
    assert f"the trace of {MODEL} is known to ± 50.0%, not 40.0%" in narrow.stderr
    assert "lambda_max" in narrow.stdout
    unasked = fastscape("spectrum", MODEL, *DIGITS)
    assert unasked.exit_code == 0


def test_the_budget_that_a_refusal_at_start_up_names_is_accepted():
    refused = fastscape("spectrum", MODEL, *DIGITS, "--budget", "0.001s")
    assert refused.exit_code == 2
    enough = refused.stderr.split("got '0.001s'; ")[1].split()[0]
    assert run_budget(enough, page=False, checkpoints=0).remaining > 0.4 * parse_seconds(enough)


def test_a_budget_that_ends_before_the_first_block_is_refused_with_one_that_is_enough(monkeypatch):
    monkeypatch.setattr("fastscape.cli.spectrum.run_budget", lambda text, **_: Budget(text, spent=4.0))
    done = fastscape("spectrum", MODEL, *DIGITS, "--budget", "3s")
    assert done.exit_code == 2
    assert "budget must fit one block of 4 products, got 3 s" in done.stderr
    assert "is enough to begin" in done.stderr


def test_a_trace_of_nan_products_is_called_that(tmp_path):
    (tmp_path / "odd.py").write_text(
        "import torch\n\ndef nan():\n    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "    torch.nn.init.constant_(model[1].weight, float('nan'))\n    return model\n"
    )
    done = fastscape("spectrum", f"{tmp_path}/odd.py:nan", *DIGITS, "--target-trace", "0.1")
    assert done.exit_code == 3, done.stderr
    assert "products of H held NaN or inf" in done.stderr
    assert "nan%" not in done.stderr


def test_help_tells_the_block_and_what_k_counts():
    words = " ".join(fastscape("spectrum", "--help").stdout.split())
    assert "Vectors per product. [default: 4]" in words
    assert "Eigenvalues of the upper end; of the lower end, the first" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MODEL, *DIGITS, "--k", "100000"), "k must be at most D = 310, got 100000"),
        (("zoo:vgg", *DIGITS), "MODEL must be one of zoo:mlp"),
        ((MODEL,), "--data is missing"),
        ((MODEL, *DIGITS, "--momentum", "0.9"), "--momentum requires --learning-rate"),
        ((MODEL, *DIGITS, "--optimizer", "nowhere.pt"), "optimizer must be a file, got 'nowhere.pt'"),
        ((MODEL, *DIGITS, "--optimizer", "a.pt", "--learning-rate", "1"), "--optimizer and --learning-rate are both given"),
        ((MODEL, *DIGITS, "--budget", "soon"), "budget must be a positive time such as '60s'"),
        ((MODEL, *DIGITS, "--budget", "0.001s"), "of start-up and 3.6 s of the page, got '0.001s'; "),
        ((MODEL, *DIGITS, "--checkpoint", "nowhere.pt"), "checkpoints[0] must be a file, got 'nowhere.pt'"),
        ((MODEL, *DIGITS, "--method", "sideways"), "method must be"),
    ],
)
def test_bad_input_is_exit_code_2_and_writes_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = fastscape("spectrum", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_models_and_data_that_do_not_fit_are_exit_code_2(tmp_path):
    (tmp_path / "odd.py").write_text("import torch\n\ndef narrow():\n    return torch.nn.Linear(3, 10)\n")
    done = fastscape("spectrum", f"{tmp_path}/odd.py:narrow", *DIGITS)
    assert done.exit_code == 2
    assert "MODEL, --criterion and --data must fit each other, got RuntimeError" in done.stderr


def interrupting(monkeypatch, at):
    """The spectrum of the ``at``-th checkpoint ends as after Ctrl-C."""
    real, calls = trajectory.spectrum_of, []

    def spectrum(*arguments):
        calls.append(1)
        result = real(*arguments)
        stopped = {"stop_reason": "interrupted"} if len(calls) == at else {}
        return dataclasses.replace(result, meta=result.meta | stopped)

    monkeypatch.setattr(trajectory, "spectrum_of", spectrum)
    return calls


def test_an_interrupted_trajectory_is_saved_and_exits_130(run, tmp_path, monkeypatch):
    calls = interrupting(monkeypatch, 2)
    done = fastscape("spectrum", MODEL, *DIGITS, *WIDE, "--checkpoint", run, "--out", tmp_path / "out")
    assert done.exit_code == 130, done.stderr
    assert len(calls) == 2
    result = fs.load(tmp_path / "out" / "spectrum.npz")
    assert [point.name for point in result.points] == ["step0", "step1"]
    assert result.meta["stop_reason"] == "interrupted"


def test_a_model_that_raises_midway_leaves_what_was_known(run, tmp_path, monkeypatch):
    real = trajectory.spectrum_of

    def fails(objective, asked, work, *others):
        if work.name == "step12":
            raise RuntimeError("inside")
        return real(objective, asked, work, *others)

    monkeypatch.setattr(trajectory, "spectrum_of", fails)
    done = fastscape("spectrum", MODEL, *DIGITS, *WIDE, "--checkpoint", run)
    assert done.exit_code == 4
    assert "inside" in done.stderr
    place = done.stderr.split("the result is saved in ")[1].splitlines()[0]
    assert [point.name for point in fs.load(place).points] == ["step0", "step1"]


def test_report_shows_a_saved_spectrum_again(tmp_path):
    fastscape("spectrum", MODEL, *DIGITS, *WIDE, "--out", tmp_path / "out")
    saved = tmp_path / "out" / "spectrum.npz"
    shown = fastscape("report", saved, "--out", tmp_path / "again.html")
    assert shown.exit_code == 0, shown.stderr
    assert (tmp_path / "again.html").read_text() == (tmp_path / "out" / "spectrum.html").read_text()
    assert fs.load(saved).verdict() in " ".join(shown.stdout.split())
    refused = fastscape("report", saved, "--q=-1,2")
    assert refused.exit_code == 2
    assert "--q analyse a multifractal result anew, got one of the kind 'spectrum'" in refused.stderr


# ---------------------------------------------------------------------- together with the multifractal probe


def test_a_probe_with_its_spectrum_is_one_page_and_four_files(run, tmp_path):
    out = tmp_path / "out"
    done = fastscape("multifractal", MODEL, *DIGITS, *FAST, "--checkpoint", run, "--spectrum", "--budget", "60s", "--out", out)
    assert done.exit_code == 0, done.stderr
    names = ["report.html", "result.json", "result.npz", "spectrum.json", "spectrum.npz"]
    assert sorted(file.name for file in out.iterdir()) == names
    assert done.stdout.index("Multifractal probe along training") < done.stdout.index("Spectrum along training")
    spectra = fs.load(out / "spectrum.npz")
    assert [point.name for point in spectra.points] == ["step0", "step1", "step12"]
    assert all(point.stability is not None for point in spectra.points)
    page = (out / "report.html").read_text()
    for words in ("Spectrum along training", "Spectral density", "Cost of the spectrum", "lambda_max"):
        assert words in page
    assert page.count("Trace by parameter") == 3
    again = fastscape("report", out / "result.npz", "--spectrum", out / "spectrum.npz", "--out", tmp_path / "again.html")
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "again.html").read_text() == page
    both = json.loads(fastscape("report", out / "result.npz", "--spectrum", out / "spectrum.npz", "--json").stdout)
    assert len(both["points"]) == len(both["spectrum"]["points"]) == 3


def test_a_probe_of_one_model_shows_its_spectrum(tmp_path):
    done = fastscape("multifractal", MODEL, *DIGITS, *FAST, "--spectrum", "--learning-rate", 0.1, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Spectral density" in page
    assert fs.load(tmp_path / "out" / "spectrum.npz").stability.optimizer == "SGD"


def test_an_optimizer_without_a_spectrum_is_refused():
    done = fastscape("multifractal", MODEL, *DIGITS, *FAST, "--learning-rate", 0.1)
    assert done.exit_code == 2
    assert "--nesterov require --spectrum" in done.stderr


def test_a_spectrum_in_the_wrong_place_is_refused(tmp_path):
    fastscape("spectrum", MODEL, *DIGITS, *WIDE, "--out", tmp_path)
    saved = tmp_path / "spectrum.npz"
    done = fastscape("report", saved, "--spectrum", saved, "--out", tmp_path / "page.html")
    assert done.exit_code == 2
    assert "got one of the kind 'spectrum' beside one of 'spectrum'" in done.stderr


def test_without_second_derivatives_the_probe_goes_on_alone(monkeypatch, tmp_path):
    def refuses(*_arguments, **_settings):
        raise fs.NoPathError("no path for products: aten.special has no second derivative")

    monkeypatch.setattr("fastscape.spectrum", refuses)
    done = fastscape("multifractal", MODEL, *DIGITS, *FAST, "--spectrum", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "no spectrum: no path for products: aten.special has no second derivative" in done.stderr
    assert not (tmp_path / "out" / "spectrum.npz").exists()
    assert (tmp_path / "out" / "report.html").exists()


def test_a_probe_interrupted_in_its_spectrum_saves_that(run, tmp_path, monkeypatch):
    interrupting(monkeypatch, 1)
    monkeypatch.setattr("fastscape.trajectory", lambda *_args, **_named: pytest.fail("the run went on"))
    done = fastscape("multifractal", MODEL, *DIGITS, *FAST, "--checkpoint", run, "--spectrum", "--out", tmp_path / "out")
    assert done.exit_code == 130, done.stderr
    names = ["spectrum.html", "spectrum.json", "spectrum.npz"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names


def test_a_probe_that_fails_after_its_spectrum_rescues_that(monkeypatch):
    def fails(*_arguments, **_settings):
        raise RuntimeError("inside")

    monkeypatch.setattr("fastscape.multifractal", fails)
    done = fastscape("multifractal", MODEL, *DIGITS, *FAST, "--spectrum")
    assert done.exit_code == 4
    place = done.stderr.split("the result is saved in ")[1].splitlines()[0]
    assert math.isfinite(fs.load(place).lambda_max)


def test_the_spectrum_has_its_share_of_the_budget(run, monkeypatch):
    seen, real = [], trajectory.spectrum_of

    def spectrum(objective, asked, work, *others):
        seen.append(work.budget)
        return real(objective, asked, dataclasses.replace(work, budget=None), *others)

    monkeypatch.setattr(trajectory, "spectrum_of", spectrum)
    done = fastscape("multifractal", MODEL, *DIGITS, *FAST, "--checkpoint", run, "--spectrum", "--budget", "1000s")
    assert done.exit_code == 0, done.stderr
    assert 0.35 * 1000 / 3 < seen[0] <= 0.4 * 1000 / 3
    assert seen[0] < seen[1] < seen[2], "what the first checkpoints leave is for the last"


def test_sharpness_and_stability_lead_the_table_and_the_json_of_a_probe_with_its_spectrum(run):
    arguments = ("multifractal", MODEL, *DIGITS, *FAST, "--checkpoint", run, "--spectrum", "--budget", "60s")
    document = json.loads(fastscape(*arguments, "--json").stdout)
    # the first steps of Adam, which is all that this run has, have no stability ratio
    assert list(document["leads"][0])[:4] == ["checkpoint", spectrum_tables.SHARPNESS, leads.EXPONENT, leads.SPREAD]
    assert all(point["stability"] is None or point["stability"]["ratio"] is None for point in document["spectrum"]["points"])
    assert [row["checkpoint"] for row in document["leads"]] == [point["name"] for point in document["points"]]
    header = fastscape(*arguments).stdout.split("checkpoint", 1)[1]
    assert header.index("lambda_max") < header.index("c2")


@pytest.mark.parametrize("several", [False, True])
def test_the_same_command_goes_on_with_its_journal(tmp_path, run, monkeypatch, several):
    """After a failure, with an older result in --out, to the bytes of a run that nothing disturbed."""
    real, left = Products._multiply, [12 if several else 3]

    def multiply(*arguments):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("lost")
        real(*arguments)

    checkpoints = [word for file in sorted(run.glob("*.safetensors")) for word in ("--checkpoint", file)] if several else []
    command = ("spectrum", MODEL, *DIGITS, *WIDE, *checkpoints, "--method", "graph", "--resume", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Products, "_multiply", multiply)
        assert fastscape(*command, "--out", tmp_path / "out").exit_code == 4
    monkeypatch.setattr(Products, "_multiply", lambda *arguments: (left.append(1), real(*arguments))[1])
    done = fastscape(*command, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert fastscape(*command[:-2], "--out", tmp_path / "alone").exit_code == 0
    found, alone = (fs.load(tmp_path / name / "spectrum.npz") for name in ("out", "alone"))
    for one, other in zip(*([each] if not several else each.points for each in (found, alone)), strict=True):
        np.testing.assert_array_equal(one.eigenvalues, other.eigenvalues)
        assert one.trace == other.trace
    assert 0 < len(left) - 1 < 2 * sum(point.products for point in (alone.points if several else [alone]))
    refused = fastscape(*command, "--seed", 3)
    assert refused.exit_code == 2
    assert "is of other seed; use another folder" in refused.stderr
    merged = fastscape("merge", tmp_path / "run")
    assert merged.exit_code == 2
    assert "whose result needs the model" in merged.stderr
