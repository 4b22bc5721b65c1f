"""A shard draws the bits of its slice of the whole parameter: every op on directions, in every language that answers."""

import functools
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from fastscape import ops
from fastscape.ops import _native
from fastscape.ops._registry import OPERATORS
from fastscape.ops.direction_dot.reference import SUM_BLOCK, dots, fold
from fastscape.ops.perturb.reference import displaced

OFFSETS = [0, 1, 3, 4, 127, 128, 2049, 16385]
KINDS = ["gaussian", "rademacher"]
SEED, INDICES = 2**63 + 9, [3, 2**32 - 1]
SIZES = (2 * 1031, 5)
GROUPS = [2, 1]


def ids():
    return torch.tensor([2**32 - 7, 11])


def whole(first, kind, size):
    """The slices of whole directions, [K, n] each."""
    drawn = OPERATORS["direction"].reference(ids(), SEED - 2**64, INDICES, [first + n for n in size], kind)
    return [rows[:, first:] for rows in drawn]


def weights(dtype=torch.float32, sizes=SIZES):
    return [torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype) for size in sizes]


@functools.cache
def cases(first, kind):
    """Arguments of every op for slices that begin at ``first``, and the results by the slices of the whole."""
    noise, firsts = whole(first, kind, SIZES), [first] * 2
    vectors = weights()
    scales = torch.rand(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    radii = [0.25, -1e-3]
    seed = SEED - 2**64
    cut = torch.split(scales, GROUPS, 1)
    moved = [displaced(w, z, s, radii, torch.float32) for w, z, s in zip(vectors, noise, cut, strict=True)]
    squares = torch.cat([dots(z, z, n) for z, n in zip(noise, GROUPS, strict=True)], 1)
    products = torch.cat([dots(v.reshape(1, -1), z, n) for v, z, n in zip(vectors, noise, GROUPS, strict=True)], 1)
    return {
        "direction": ((ids(), seed, INDICES, list(SIZES), kind, firsts), noise),
        "direction_norms": ((ids(), seed, INDICES, list(SIZES), GROUPS, kind, firsts), [squares]),
        "direction_dot": ((vectors, ids(), seed, INDICES, GROUPS, kind, firsts), [products]),
        "perturb": ((vectors, ids(), seed, INDICES, scales, GROUPS, radii, torch.float32, kind, firsts), moved),
    }


def equal(found, expected):
    found = found if isinstance(found, list) else [found]
    return all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


NAMES = ["direction", "direction_norms", "direction_dot", "perturb"]
SLICES = pytest.mark.parametrize(("name", "kind", "first"), [(n, k, f) for n in NAMES for k in KINDS for f in OFFSETS])


@SLICES
def test_the_reference_gives_slices_of_the_whole(name, kind, first):
    arguments, expected = cases(first, kind)[name]
    assert equal(OPERATORS[name].reference(*arguments), expected)


@pytest.mark.skipif(not _native.library.available, reason=_native.library.reason)
@pytest.mark.parametrize("isa", _native.ISAS)
@SLICES
def test_the_native_kernels_give_slices_of_the_whole(name, kind, first, isa):
    arguments, expected = cases(first, kind)[name]
    before = _native.library.isa
    try:
        if _native.library.set_isa(isa) != isa:
            pytest.skip(f"this processor has no {isa}")
        assert equal(OPERATORS[name](*arguments), expected)
    finally:
        _native.library.set_isa(before)


@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
@SLICES
def test_the_triton_kernels_give_slices_of_the_whole(name, kind, first):
    from ops.test_triton_directions import LAUNCHERS, launched, moved

    arguments, expected = cases(first, kind)[name]
    if name in LAUNCHERS:
        assert equal(launched(name, *arguments), expected)
        return
    from fastscape.ops.perturb.triton import perturb

    assert equal(perturb(*map(moved, arguments[:3]), *arguments[3:4], moved(arguments[4]), *arguments[5:]), expected)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", OFFSETS)
def test_prepared_calls_take_slices_too(kind, first, kernel):
    expected, firsts = cases(first, kind), [first] * 2
    out = [torch.full((size,), torch.nan) for size in SIZES]
    generate = ops.Generation(out, ids().tolist(), kind, firsts)
    if not kernel:
        generate._native, generate._ids = None, ids()
    generate(SEED, INDICES[1])
    assert equal(out, [rows[1] for rows in expected["direction"][1]])
    scales = expected["perturb"][0][4]
    outputs = [[torch.full((size,), torch.nan) for size in SIZES] for _ in range(2)]
    move = ops.Perturbation(weights(), outputs, ids().tolist(), groups=GROUPS, distribution=kind, firsts=firsts)
    if not kernel:
        move._kernel = None
    move.aim(SEED, INDICES[1], scales[1].numpy())
    move.write(0.25, -1e-3)
    assert all(equal(outputs[r], [rows[1, r] for rows in expected["perturb"][1]]) for r in range(2))


@pytest.mark.parametrize("groups", [1, 3])
def test_blocks_of_a_direction_fold_to_its_norms(groups):
    """Any process can make any block of 16384 elements: shards need no data of each other for the norm of the whole."""
    size = 3 * 40_001
    length, blocks = size // groups, -(-(size // groups) // SUM_BLOCK)
    starts = [
        (row * length + b * SUM_BLOCK, min(SUM_BLOCK, length - b * SUM_BLOCK)) for row in range(groups) for b in range(blocks)
    ]
    firsts, counts = ([pair[part] for pair in starts] for part in (0, 1))
    partial = ops.direction_norms(torch.full((len(starts),), 11), SEED, INDICES, counts, firsts=firsts)
    expected = ops.direction_norms(torch.tensor([11]), SEED, INDICES, [size], [groups])
    assert torch.equal(fold(partial.reshape(2, groups, blocks)), expected)


@pytest.mark.parametrize(
    ("firsts", "message"),
    [
        ([0], r"firsts must have one entry per tensor, got 1 for 2 tensors"),
        ([0, -1], r"firsts\[1\] must be an integer in \[0, .*got -1"),
        ([2**34, 0], r"firsts\[0\] must be an integer in \[0, .*got 17179869184"),
    ],
)
def test_places_outside_of_the_largest_parameter_are_refused(firsts, message):
    word = ids()
    calls = [
        lambda: ops.direction(word, 1, [0], SIZES, firsts=firsts),
        lambda: ops.direction_norms(word, 1, [0], SIZES, firsts=firsts),
        lambda: ops.direction_dot(weights(), word, 1, [0], firsts=firsts),
        lambda: ops.perturb(weights(), word, 1, [0], torch.ones(1, 2).double(), [0.1], firsts=firsts),
        lambda: ops.Generation([torch.empty(size) for size in SIZES], word.tolist(), firsts=firsts),
        lambda: ops.Perturbation(weights(), [[torch.empty(size) for size in SIZES]], word.tolist(), firsts=firsts),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_calls_without_places_keep_their_bits():
    """The generator's published values: nothing moves for whole parameters."""
    (drawn,) = ops.direction(torch.tensor([42]), 1, [0], [8])
    assert torch.equal(drawn, ops.direction(torch.tensor([42]), 1, [0], [8], firsts=[0])[0])
    assert np.array_equal(drawn[0], OPERATORS["direction"].reference(torch.tensor([42]), 1, [0], [8], "gaussian")[0][0])
