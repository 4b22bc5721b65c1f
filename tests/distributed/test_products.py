"""Curvature by several processes: the same bits for any number of them, and no process left waiting."""

import re

import pytest
import torch

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_products_and_spectra_have_the_same_bits_for_any_number_of_ranks(crew, ranks):
    expected = crew("products:products", 1)[0]["found"]
    for found in crew("products:products", ranks):
        assert found["found"] == expected
    assert expected["ddp"] == expected["spectrum float32"]
    assert expected["hessian float32"] != expected["ggn float32"]


def test_they_are_those_of_one_process_to_rounding(crew):
    """A sum of five batches, and what Lanczos makes of it: units of the dtype, times the condition of a sum."""
    for name, off in crew("products:products", 2)[0]["apart"].items():
        assert off < 100 * torch.finfo(getattr(torch, name.split()[1])).eps, name


def test_a_spectrum_that_failed_goes_on_from_the_journal_of_rank_0(crew):
    first, second = crew("products:resumed", 2)
    assert first == second
    assert first["again"][0] == first["whole"][0] == first["complete"][0]
    assert first["failed"] == "SpectrumError"
    assert [first["again"][1] + first["done"], first["complete"][1]] == [first["whole"][1], 0]
    assert first["other"][0] == "ValueError"
    assert "is of other seed; use another folder" in first["other"][1]


def test_a_block_is_of_rank_0_and_its_exceptions_are_of_all(crew):
    first, second = crew("products:blocks", 2)
    assert [len(first[0]), second[0]] == [4, ["before", "after"]]
    assert first[1] == second[1] == ["ZeroDivisionError", "of rank 0"]
    assert first[0][1] == first[2] == second[2]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weights", "other weights.* on rank 1"),
        ("data", "other data.* on rank 1"),
        ("loss", "other loss on rank 1"),
        ("parameters", "other parameters.* on rank 1"),
        ("directions", "other directions on rank 1"),
    ],
)
def test_ranks_that_hold_something_else_are_refused_on_all(crew, what, words):
    first, second = (found[what] for found in crew("products:unlike", 2))
    assert first == second
    assert first[0] == "ValueError"
    assert re.search(f"ranks must hold the same .* as rank 0, got {words}", first[1])


def test_different_calls_are_refused_on_all(crew):
    first, second = crew("products:unlike", 2)
    assert first["calls"] == second["calls"]
    assert first["calls"][0] == "ValueError"
    assert "ranks must make the same calls" in first["calls"][1]
    assert first["after"] == second["after"]


@pytest.mark.parametrize(("what", "rank"), [("midway", 1), ("midway on rank 0", 0)])
def test_a_loss_that_fails_on_a_rank_leaves_all_the_partial_result(crew, what, rank):
    first, second = (found[what] for found in crew("products:failures", 2))
    assert first == second
    assert re.search(f"rank {rank} of 2 on .+ failed: ArithmeticError: the loss has failed", first[0])
    assert first[1:] == [True, True]


def test_a_loss_that_fails_at_once_is_told_on_all(crew):
    first, second = (found["at once"] for found in crew("products:failures", 2))
    assert first == second == ["RankError", first[1]]
    assert "rank 1 of 2 on" in first[1]


def test_a_batch_that_is_nan_ends_all_with_what_is_known(crew):
    assert [found["nan"] for found in crew("products:failures", 2)] == ["nan products"] * 2


def test_a_rank_short_of_memory_multiplies_fewer_at_a_time(crew):
    for found in crew("products:failures", 2):
        assert found["memory 1"] == [True, 1]
        assert found["memory 100"][0][0] == "RankError"
        assert "rank 1 of 2 on" in found["memory 100"][0][1]
        assert "OutOfMemoryError" in found["memory 100"][0][1]


def test_a_bad_argument_is_refused_as_it_is_by_one_process(crew):
    for found in crew("products:failures", 2):
        assert found["bad"][0] == "ValueError"
        assert "got 'nonsense'" in found["bad"][1]


def test_ctrl_c_ends_all_with_what_rank_0_knows(crew):
    first, second = crew("products:interrupted", 2)
    assert first == ["interrupted", first[1], True, True]
    assert second == ["interrupted", first[1], False, True]


def test_a_rank_that_is_killed_leaves_nobody_waiting(crew):
    """The connection is lost, and torchrun ends the others."""
    assert crew("products:killed", 2, fails=True)[1] is None


def test_which_processes_a_call_takes(crew):
    for rank, found in enumerate(crew("products:groups", 2)):
        assert found["before"] == [0, "ValueError"]
        assert found["made"] == [2, False, 2]
        assert found["default"] == [2, 0]
        assert found["group"] == 2
        assert found["ddp"] == [0, True]
        assert found["gradients"] == 0
        assert found["part"] == (1 if rank == 0 else ["ValueError", found["part"][1]])
        assert found["wrong"][0] == "TypeError"
        assert found.get("signature") == ("Signature" if rank == 0 else None)
