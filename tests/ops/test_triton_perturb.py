"""The Triton kernel of perturbations has the reference's bits: on a chip, or interpreted."""

from importlib.util import find_spec
from itertools import product

import numpy as np
import pytest
import torch

if not find_spec("triton"):
    pytest.skip("triton is not installed", allow_module_level=True)

from ops.interpreter import DEVICE, bfloat16_as_on_chips  # noqa: F401
from ops.samples import SAMPLES

from fastscape.ops import Perturbation, _native, _triton
from fastscape.ops.perturb import prepared, reference, triton

KINDS = ["gaussian", "rademacher"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def weights(*sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def scales(directions, pieces):
    return torch.rand(directions, pieces, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 0.1


def check(tensors, ids, seed, indices, factors, groups, radii, dtype, kind, *firsts):
    """The kernel's results are the reference's, bit by bit, and NaN where it has NaN."""
    expected = reference.perturb(tensors, ids, seed, indices, factors, groups, radii, dtype, kind, *firsts)
    there = [tensor.to(DEVICE) for tensor in tensors]
    found = triton.perturb(there, ids.to(DEVICE), seed, indices, factors.to(DEVICE), groups, radii, dtype, kind, *firsts)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.cpu(), b, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("index", range(len(list(SAMPLES["perturb"]()))))
def test_samples(index):
    check(*list(SAMPLES["perturb"]())[index])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weight", "out"), list(product(DTYPES, DTYPES)), ids=str)
def test_every_pair_of_dtypes(weight, out, kind):
    check(weights(1021, dtype=weight), torch.tensor([9]), 3, [6], scales(1, 1), [1], [0.37], out, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_different_dtypes_and_alignments_in_one_call(kind):
    whole = weights(2304, 2051)
    tensors = [whole[0], whole[1][3:], whole[0][:20].double(), whole[0][:7].bfloat16(), whole[0][:0].half()]
    check(tensors, torch.arange(5), -1, [1, 2**31], scales(2, 5), [1] * 5, [1.0, -0.5], torch.float32, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_every_length_against_the_block(kind):
    lengths = [1, 2, 3, 7, 64, 1000, 2047, 2048, 2049, 3001]
    groups = [max(2, 4200 // length) for length in lengths]
    sizes = [length * group for length, group in zip(lengths, groups, strict=True)]
    arguments = scales(1, sum(groups)), groups, [0.25]
    check(weights(*sizes), torch.arange(10), 5, [3], *arguments, torch.float32, kind)


def test_coefficients_are_rounded_once_and_not_fused():
    tensors = [torch.full((4096,), 1.0 + 2.0**-23)]
    check(tensors, torch.tensor([1]), 5, [3], scales(1, 1) / 3, [1], [1 / 3, -1e-3], torch.float32, "gaussian")


@pytest.mark.parametrize(("indices", "radii"), [([], [1.0]), ([1], []), ([], [])])
def test_no_directions_or_no_radii(indices, radii):
    check(weights(5, 0), torch.tensor([1, 2]), 5, indices, scales(len(indices), 2), [1, 1], radii, torch.float32, "gaussian")


def test_no_tensors():
    assert (
        triton.perturb([], torch.tensor([], dtype=torch.int64), 1, [0], scales(1, 0), [], [1.0], torch.float32, "gaussian") == []
    )


def prepared_call(monkeypatch, tensors, outputs, groups, kind):
    """A Perturbation that runs the Triton kernel."""
    monkeypatch.setattr(_triton, "answers", lambda tensors: True)
    monkeypatch.setattr(_native, "library", _native.Library("off", _native.library.path))
    perturbation = Perturbation(tensors, outputs, [3, 4, 5], groups=groups, distribution=kind)
    assert isinstance(perturbation._kernel, triton.Prepared)
    return perturbation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_prepared_calls_write_to_the_callers_tensors_and_nowhere_else(monkeypatch, kind, dtype):
    tensors, groups = weights((3, 43), (0,), (2, 2), dtype=dtype), [3, 1, 1]
    tensors = [tensor.to(DEVICE) for tensor in tensors]
    flat = torch.full((2, 129 + 4 + 7), 7.0, dtype=dtype, device=DEVICE)
    outputs = [[row[1:130].view(3, 43), row[130:130], row[132:136].view(2, 2)] for row in flat]
    perturbation = prepared_call(monkeypatch, tensors, outputs, groups, kind)
    for seed, index, radii in ((5, 1, (0.5, -0.5)), (2**63, 2**32 - 1, (1e-3, 2.0))):
        factors = scales(1, 5)
        perturbation.aim(seed, index, factors[0].numpy())
        perturbation.write(*radii)
        cpu = [tensor.cpu() for tensor in tensors]
        ids = torch.tensor([3, 4, 5])
        expected = reference.perturb(cpu, ids, seed, [index], factors, groups, radii, dtype, kind)
        for row, target in enumerate(outputs):
            assert all(torch.equal(a.cpu().reshape(-1), b[0, row]) for a, b in zip(target, expected, strict=True))
        around = flat.cpu()[:, [0, 130, 131, 136, 137, 138, 139]]
        assert (around == 7.0).all()


def test_weights_are_read_at_every_call(monkeypatch):
    tensors = [torch.zeros(8, device=DEVICE)]
    outputs = [[torch.empty(8, device=DEVICE)]]
    monkeypatch.setattr(_triton, "answers", lambda tensors: True)
    monkeypatch.setattr(prepared._native, "library", _native.Library("off", _native.library.path))
    perturbation = Perturbation(tensors, outputs, [3])
    perturbation.aim(1, 0, np.ones(1))
    perturbation.write(0.0)
    tensors[0].fill_(2.0)
    perturbation.write(0.0)
    assert (outputs[0][0] == 2.0).all()
