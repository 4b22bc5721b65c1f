"""Prepared calls refuse what their kernels would write past, and give the ops' bits in every layout."""

import numpy as np
import pytest
import torch

from fastscape import ops


def perturbation(**changed):
    arguments = {"weights": [torch.ones(6)], "outputs": [[torch.empty(6)]], "ids": [7], **changed}
    return ops.Perturbation(arguments.pop("weights"), arguments.pop("outputs"), arguments.pop("ids"), **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: perturbation(outputs=[[torch.empty(5)]]), r"outputs\[0\]\[0\] must have 6 elements, got 5"),
        (
            lambda: perturbation(outputs=[[torch.empty(6)], [torch.empty(6).double()]]),
            r"outputs\[1\] must be .*got torch.float64",
        ),
        (lambda: perturbation(outputs=[[torch.empty(6)], []]), r"outputs\[1\] must hold one tensor per weight, got 0 for 1"),
        (lambda: perturbation(outputs=[]), "weights and outputs must not be empty, got 1 weights and 0 outputs"),
        (lambda: perturbation(weights=[torch.ones(6, dtype=torch.int32)]), r"weights\[0\] must be float32, .*got torch.int32"),
        (lambda: perturbation(ids=[7, 8]), "ids must have one id per weight, got 2 for 1"),
        (lambda: perturbation(groups=[4]), r"groups\[0\] must divide the tensor's 6 elements, got 4"),
        (lambda: perturbation(distribution="normal"), "distribution must be 'gaussian' or 'rademacher', got 'normal'"),
        (lambda: perturbation(raw=[torch.ones(6).double()]), r"raw\[0\] must be torch.float32 .*got torch.float64"),
        (lambda: perturbation(raw=[torch.ones(5)]), r"raw\[0\] must have 6 elements, got 5"),
        (lambda: perturbation(raw=[torch.ones(12)[::2]]), r"raw\[0\] must be contiguous, got strides \(2,\)"),
        (lambda: perturbation().aim(2**64, 0, np.ones(1)), r"seed must be an integer in \[0, 2\^64\)"),
        (lambda: perturbation().aim(0, -1, np.ones(1)), r"index must be an integer in \[0, 2\^32\), got -1"),
        (lambda: _aimed().write(0.1, 0.2), "radii must be one per output, got 2 for 1"),
        (lambda: ops.Generation([torch.empty(4, dtype=torch.bfloat16)], [7]), r"out\[0\] must be torch.float32"),
        (lambda: ops.Generation([torch.empty(8)[::2]], [7]), r"out\[0\] must be contiguous"),
        (lambda: ops.Norms(torch.tensor([7]), [12], [5], "gaussian"), r"groups\[0\] must divide the tensor's 12 elements, got 5"),
        (lambda: ops.StoredNorms([torch.ones(12)], [5]), r"groups\[0\] must divide the tensor's 12 elements, got 5"),
        (lambda: ops.StoredNorms([torch.ones(12).double()], [1]), r"raw\[0\] must be torch.float32"),
        (lambda: ops.direction(torch.tensor([7]), 2**64, [0], [4]), r"seed must be an integer in \[0, 2\^64\)"),
        (lambda: ops.direction(torch.tensor([7]), -1, [0], [4]), r"seed must be an integer in \[0, 2\^64\), got -1"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _aimed():
    move = perturbation()
    move.aim(0, 0, np.ones(1))
    return move


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.direction([7], 0, [0], [4]), r"ids must be an int64 tensor \[T\], got list; write torch.tensor\(ids\)"),
        (lambda: ops.direction(torch.tensor([7]), 0, 3, [4]), r"directions must be a sequence of indices, got 3; write \[3\]"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_direction_must_be_chosen_first():
    with pytest.raises(RuntimeError, match=r"aim\(\) must choose a direction before write\(\)"):
        perturbation().write(0.1)


def test_channels_last_weights_get_the_same_values():
    """Noise belongs to the logical element, wherever it lies in memory."""
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        base = weight.to(memory_format=layout)
        out = torch.empty_like(base)
        move = ops.Perturbation([base], [[out]], [7], groups=[8])
        move.aim(3, 5, np.linspace(0.5, 1, 8))
        move.write(0.25)
        assert out.is_contiguous(memory_format=layout)
        results.append(out.contiguous())
    assert torch.equal(*results)


def test_norms_of_stored_and_generated_directions_are_the_same_bits():
    ids, sizes, groups = torch.tensor([7, 9]), [40_004, 15], [4, 3]
    raw = [torch.empty(size) for size in sizes]
    ops.Generation(raw, ids.tolist())(5, 3)
    stored = ops.StoredNorms(raw, groups)()
    assert (stored == ops.Norms(ids, sizes, groups, "gaussian")(5, 3)).all()
    assert (stored == ops.direction_norms(ids, 5, [3], sizes, groups)[0].numpy()).all()


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_without_a_kernel_torch_writes_the_same_bits(dtype, groups, raw):
    weights = [torch.randn(12, generator=torch.Generator().manual_seed(0)), torch.randn(6, dtype=torch.float64)]
    kept = [torch.randn(12), torch.randn(6)] if raw else None
    results = []
    for kernel in (True, False):
        outputs = [[torch.empty(12, dtype=dtype), torch.empty(6, dtype=dtype)] for _ in range(2)]
        move = ops.Perturbation(weights, outputs, [7, 9], groups=[groups, groups], raw=kept)
        if not kernel:
            move._kernel = None
        move.aim(3, 5, np.linspace(0.5, 1, 2 * groups))
        move.write(0.25, -0.5)
        results.append([tensor for row in outputs for tensor in row])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert not torch.equal(results[0][0], results[0][2])
