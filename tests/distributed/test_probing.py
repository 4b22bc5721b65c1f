"""The multifractal probe on several processes: the bytes of one, whatever happens to them."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context

import numpy as np
import probing
import pytest
import torch
from launched import torchrun

import fastscape as fs
from fastscape import zoo

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def alone():
    """Digests of this process alone."""
    return probing.same()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_numbers_are_those_of_one_process_to_the_last_bit(processes, alone, crew):
    for found in crew("probing:same", processes):
        assert found == alone


@pytest.fixture(scope="module")
def pool():
    """Two spawned processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="module")
def dask():
    """Dask's client of two processes."""
    library = pytest.importorskip("distributed.client", reason="Dask is not installed")
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=None) as cluster,
        library.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("name", ["pool", "dask"])
def test_the_workers_of_an_executor_give_the_numbers_of_one_process(name, alone, request):
    executor = request.getfixturevalue(name)
    for model, path in product(probing.MODELS, probing.PATHS):
        found = probing.probed(path, of=fs.Source(partial(probing.objective, model)), executor=executor, distributed=False)
        assert probing.digest(found) == alone[f"{model} {path}"]
        assert sum(found.meta["workers"]["units"]) > 0
        assert "bitwise" not in found.meta


def test_a_process_that_is_killed_at_random_writes_ends_with_the_same_numbers(alone, tmp_path, crew):
    (found,) = crew("probing:kills", 1, str(tmp_path), 0)
    assert found == {name: alone[name] for name in found}
    assert len(found) == len(probing.MODELS) * len(probing.PATHS)


def test_a_trajectory_is_that_of_one_process(tmp_path, crew):
    for step in (1, 2):
        torch.manual_seed(step)
        torch.save(zoo.mlp().state_dict(), tmp_path / f"step{step}.pt")
    first, second = crew("probing:along", 2, str(tmp_path))
    assert first == second == {"digest": probing.along(tmp_path)["digest"], "shared": True}


def test_ranks_of_other_models_data_or_versions_are_refused_on_all(crew, alone):
    first, second = crew("probing:refused", 2)
    start = "ValueError: ranks must hold the same model and data as rank 0, got other"
    for name, words in {
        "weights": "weights",
        "data": "data, batch weights",
        "loss": "loss function",
        "settings": "settings",
        "version": "version of torch",
    }.items():
        assert first[name] == second[name] == f"{start} {words} on rank 1"
    assert first["instructions"] is second["instructions"] is False
    assert any("other processors" in words for words in first["warned"])
    assert not second["warned"]
    assert first["after"] == second["after"] == alone["mlp graph"]


def test_what_fails_on_one_rank_is_raised_on_all(crew):
    first, second = crew("probing:failing", 2)
    assert first == second
    assert first["planning"] == "ArithmeticError: no plan"
    assert "on rank 1 (" in first["unit"]
    assert "ArithmeticError: no loss" in first["unit"]
    assert first["reason"].startswith("failed: RankError")


def test_a_rank_short_of_memory_halves_its_units_or_leaves_them(crew, alone):
    first, second = crew("probing:narrow", 2)
    assert first == second
    assert first["oom"] == {"1": 1}
    assert first["bitwise"] is False
    whole = probing.probed(distributed=False).measured.even
    np.testing.assert_allclose(np.array(first["even"]), whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max(axis=-1).min())
    assert first["left"] == alone["mlp graph"]
    assert first["units"][1] == 0


def test_a_budget_ends_the_run_on_all_ranks_and_rank_0_alone_reports(crew):
    first, second = crew("probing:deadline", 2)
    assert first["reason"] == second["reason"] == "deadline"
    assert first["digest"] == second["digest"]
    assert first["progress"] > 0
    assert second["progress"] == 0


def test_the_end_of_the_launcher_leaves_the_partial_result_on_all_ranks(crew):
    first, second = crew("probing:interrupted", 2, fails=True)
    assert first == second
    assert first["reason"] == "interrupted"
    assert first["directions"] > 0


def test_a_rank_that_is_killed_is_started_again_and_goes_on_with_the_journal(tmp_path, crew):
    first, second = crew("probing:killed", 2, str(tmp_path), 0, launch=("--max-restarts=2",))
    assert first == second
    assert first["restarts"] == "2"
    assert first["digest"] == first["again"] == probing.digest(probing.probed(probe={"count": 40}))
    assert 0 < first["evaluated"] < 20  # of 20 units, of which the first attempts did some
    assert first["evaluated again"] == 0
    assert first["writers"] >= 3


def test_groups_of_the_user_serve_and_trainings_are_left_alone(crew, alone):
    first, second = crew("probing:groups", 2)
    assert first["default"] == second["default"] == "torch gloo"
    assert first["world"] == second["world"] == first["asked for"] == second["asked for"] == 2
    assert first["one"] == "nothing was raised"
    assert "must be a group that this process is in" in second["one"]
    assert first["alone"] == alone["mlp graph"]
    assert [words for words in first["warned"] if "pass distributed=True" in words]


COMMAND = ("zoo:mlp", "--data", "zoo:digits?samples=32", "--count", "4", "--banks", "2", "--radii", "1e-4:1e-1:4")


def test_one_process_of_the_command_prints_and_writes_and_all_leave_alike(tmp_path):
    files = ("--out", tmp_path / "out", "--resume", tmp_path / "journal")
    arguments = (*COMMAND, "--precision", "difference", "--quiet", *files, "--target", "1e-9", "--spectrum")
    ended = torchrun(2, "-m", "fastscape", "multifractal", *arguments)
    assert ended.returncode == 1, ended.stderr  # of the launcher, where a process does not end with 0
    assert ended.stdout.count("Multifractal probe") == 1
    assert ended.stderr.count("the target 1e-09 was not reached") == 1
    assert "exitcode  : 3" in ended.stderr
    assert "exitcode  : 1" not in ended.stderr
    result = fs.load(tmp_path / "out" / "result.npz")
    merged = fs.merge(tmp_path / "journal")
    assert merged.measured.even.tobytes() == result.measured.even.tobytes()
    assert fs.load(tmp_path / "out" / "spectrum.npz").meta["workers"]["size"] == 2


def test_what_leaves_with_an_unreached_target_is_not_started_again(tmp_path):
    arguments = (*COMMAND[:3], "--nodes", "8", "--target-trace", "1e-9", "--quiet", "--out", tmp_path)
    ended = torchrun(2, "-m", "fastscape", "spectrum", *arguments, options=("--max-restarts=2",))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("wall time") == 1
    assert ended.stderr.count("a target was not reached") == 1
    result = fs.load(tmp_path / "spectrum.npz")
    assert result.meta["workers"]["size"] == 2
    plain = fs.spectrum(fs.Source(*COMMAND[:1], data=COMMAND[2]).make(), nodes=8, distributed=False)
    np.testing.assert_allclose(result.eigenvalues, plain.eigenvalues, rtol=1e-3)


def test_processes_of_the_command_can_work_alone():
    ended = torchrun(2, "-m", "fastscape", "multifractal", *COMMAND, "--precision", "float64", "--distributed", "never")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("wall time") == 2
