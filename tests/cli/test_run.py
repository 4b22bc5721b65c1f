"""``fastscape run``: several probes of one checkpoint on one page."""

import json

import pytest
import torch
from click.testing import CliRunner

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main
from fastscape.cli import run as cli_run
from fastscape.cli.live import described
from fastscape.probes.signature.probe import PROBES
from fastscape.runs.budget import Budget
from fastscape.runs.checkpoints import read_state

MODEL = "zoo:mlp?hidden=(4,)"
DIGITS = ("--data", "zoo:digits?samples=32")
ONE = ("--what", "sharpness")


def fastscape(*arguments):
    return CliRunner().invoke(main, ["run", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    zoo.train(zoo.mlp(hidden=(4,)), zoo.digits(samples=64), folder, steps=4, checkpoints=3)
    return folder


def test_probes_without_further_options_make_one_page(clock, tmp_path):
    clock.tick = 0.01
    done = fastscape(MODEL, *DIGITS, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["run.html", "run.json", "run.npz"]
    result = fs.load(tmp_path / "out" / "run.npz")
    assert list(result) == ["spectrum", "slice", "sharpness", "critical_sharpness", "multifractal"]
    assert set(result.missing) == set()  # what was not asked for is not missing
    assert result.meta["budget"] == 60
    page = (tmp_path / "out" / "run.html").read_text()
    for each in result.results.values():
        assert each.section().title.split(":")[0] in page
        assert each.section().title.split(":")[0] in done.stdout


def test_training_and_a_second_solution_add_temperature_and_barrier(trained):
    first, last = (trained / f"step{step}.safetensors" for step in (0, 4))
    options = ("--checkpoint", trained, "--other", first, "--batch-size", 8, "--learning-rate", 0.1, "--seed", 3)
    done = fastscape(MODEL, *DIGITS, *options, "--what", "barrier", "--what", "temperature", "--json")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert list(document["results"]) == ["temperature", "barrier"]
    assert (document["name"], document["step"], document["meta"]["seed"]) == (last.stem, 4, 3)
    objective = fs.Objective(zoo.mlp(hidden=(4,)), zoo.digits(samples=32), criterion=torch.nn.functional.cross_entropy)
    ends = (read_state(file) for file in (last, first))
    barrier = fs.barrier(objective, *ends, seed=3)
    assert document["results"]["barrier"]["losses"] == pytest.approx(barrier.losses.tolist())


def test_the_optimizer_beside_a_checkpoint_is_that_of_the_stability(trained):
    done = fastscape(MODEL, *DIGITS, "--checkpoint", trained, "--what", "spectrum", "--tolerance", 0.1, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["results"]["spectrum"]["stability"]["optimizer"]


def test_a_target_that_is_not_reached_has_its_exit_code(clock):
    clock.tick = 0.02
    done = fastscape(MODEL, *DIGITS, "--what", "multifractal", "--target", 1e-9, "--budget", "20s")
    assert done.exit_code == 3
    assert "the target 1e-09 was not reached" in done.stderr


def test_a_probe_that_fails_is_named_and_costs_no_other_its_result(monkeypatch):
    def fail(*_arguments, **_settings):
        raise ArithmeticError("no bound")

    monkeypatch.setitem(PROBES, "sharpness", fail)
    done = fastscape(MODEL, *DIGITS, *ONE, "--what", "slice", "--json")
    assert done.exit_code == 0, done.stderr
    assert "no sharpness: it failed: ArithmeticError: no bound" in done.stderr
    assert list(json.loads(done.stdout)["results"]) == ["slice"]
    alone = fastscape(MODEL, *DIGITS, *ONE)
    assert alone.exit_code == 4


def test_ctrl_c_keeps_what_is_known(monkeypatch, tmp_path):
    def interrupt(*_arguments, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setitem(PROBES, "sharpness", interrupt)
    done = fastscape(MODEL, *DIGITS, *ONE, "--what", "slice", "--what", "multifractal", "--out", tmp_path)
    assert done.exit_code == 130
    result = fs.load(tmp_path / "run.npz")
    assert list(result) == ["slice"]
    assert set(result.missing) >= {"sharpness", "multifractal"}
    assert (tmp_path / "run.html").exists()
    assert fastscape(MODEL, *DIGITS, *ONE).exit_code == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--what", "temperature"), "--what temperature requires --batch-size, and --learning-rate or --optimizer"),
        (("--what", "barrier"), "--what barrier requires --other"),
        ((*ONE, "--target", 0.1), "--target requires --what multifractal"),
        ((*ONE, "--tolerance", 0.1), "--tolerance requires --what spectrum"),
        ((*ONE, "--target-trace", 0.1), "--target-trace requires --what spectrum"),
        (("--tolerance", 1), "Invalid value for '--tolerance'"),
        (("--target-trace", 0), "Invalid value for '--target-trace'"),
        (("--target", -1), "Invalid value for '--target'"),
        (("--momentum", 0.9), "--momentum requires --learning-rate"),
        (("--batch-size", 0), "batch_size must be at least 1"),
        (("--checkpoint", "nowhere.pt"), "nowhere.pt"),
        (("--budget", "1ms"), "got '1ms'"),
        (("--what", "fractal"), "'fractal' is not one of"),
    ],
)
def test_bad_input_is_exit_code_2_before_any_work(monkeypatch, arguments, message):
    for kind in PROBES:
        monkeypatch.setitem(PROBES, kind, lambda *_arguments, **_settings: pytest.fail("the work was started"))
    done = fastscape(MODEL, *DIGITS, *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr


@pytest.mark.parametrize("seconds", [None, 100.0])
def test_the_bar_names_each_probe_and_never_exceeds_the_whole(seconds):
    drawn = []

    class Live:
        def show(self, state):
            drawn.append((described(state), state.fraction))

    options = cli_run._progress("m", Budget(seconds), Live())
    objective = fs.Objective(zoo.mlp(hidden=(4,)), zoo.digits(samples=32), criterion=torch.nn.functional.cross_entropy)
    cheap = {"slice": {"count": 2, "points": 3}, "multifractal": {"probe": fs.ProbeSettings(count=2, banks=2)}}
    other = zoo.mlp(hidden=(4,))
    kinds = ("spectrum", "slice", "barrier", "multifractal")
    chosen = {kind: options[kind] | cheap.get(kind, {}) for kind in kinds}
    fs.probe(objective, kinds, other=other, options=chosen, targets={"eigenvalues": 0.1, "trace": 0.5})
    assert list(dict.fromkeys(words for words, _ in drawn)) == [f"m · {kind}" for kind in kinds]
    assert all(0 <= share <= 1 for _, share in drawn)


def test_the_words_of_the_help_are_those_of_the_package():
    assert tuple(PROBES) == cli_run.PROBES
