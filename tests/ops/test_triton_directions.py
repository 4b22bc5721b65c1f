"""The Triton kernels of directions, their inner products and norms have the reference's bits: on a chip, or interpreted."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

if not find_spec("triton"):
    pytest.skip("triton is not installed", allow_module_level=True)

import triton
import triton.language as tl
from ops.interpreter import DEVICE, bfloat16_as_on_chips  # noqa: F401
from ops.samples import SAMPLES

from fastscape.ops import _triton
from fastscape.ops._registry import OPERATORS
from fastscape.ops.direction import reference
from fastscape.ops.direction.triton import noise_block

LAUNCHERS = {"direction": "directions", "direction_dot": "direction_dot", "direction_norms": "direction_norms"}
KINDS = ["gaussian", "rademacher"]
IDS = torch.tensor([5, 2**32 - 16, 0])


def launched(name, *arguments):
    """What the kernel returns, on the CPU."""
    launcher = getattr(import_module(f"fastscape.ops.{name}.triton"), LAUNCHERS[name])
    found = launcher(*(moved(argument) for argument in arguments))
    return [tensor.cpu() for tensor in found] if isinstance(found, list) else [found.cpu()]


def moved(argument):
    if isinstance(argument, torch.Tensor):
        return argument.to(DEVICE)
    return [moved(item) for item in argument] if isinstance(argument, list) else argument


def check(name, *arguments):
    """The kernel's results are the reference's, bit by bit."""
    expected = OPERATORS[name].reference(*arguments)
    found = launched(name, *arguments)
    for a, b in zip(found, expected if isinstance(expected, list) else [expected], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("index", range(len(list(SAMPLES["direction"]()))))
def test_samples_of_direction(index):
    check("direction", *list(SAMPLES["direction"]())[index])


@pytest.mark.parametrize("index", [0, -3, -2, -1])  # every dtype: below, with fewer rows
def test_samples_of_inner_products(index):
    vectors, ids, seed, directions, *rest = list(SAMPLES["direction_dot"]())[index]
    check("direction_dot", vectors, ids, seed, directions[-1:], *rest)


@pytest.mark.parametrize("index", range(len(list(SAMPLES["direction_norms"]()))))
def test_samples_of_norms(index):
    ids, seed, directions, *rest = list(SAMPLES["direction_norms"]())[index]
    check("direction_norms", ids, seed, directions[-1:], *rest)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[4096, 8192, 64], [4097, 0, 1]], ids=["whole vectors", "odd"])
def test_directions(kind, sizes):
    check("direction", IDS, -(2**63) + 12345, [0, 2**32 - 1], sizes, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_odd_directions_are_not_aligned(kind):
    check("direction", IDS[:1], 1, [4, 5, 6], [131], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_do(kind):
    assert [tuple(t.shape) for t in launched("direction", IDS, 1, [], [3, 0, 5], kind)] == [(0, 3), (0, 0), (0, 5)]
    assert [tuple(t.shape) for t in launched("direction", IDS[:1], 1, [1], [0], kind)] == [(1, 0)]
    assert launched("direction", IDS[:0], 1, [1], [], kind) == []
    assert launched("direction_norms", IDS[:1], 1, [], [8], [2], kind)[0].shape == (0, 2)
    assert launched("direction_norms", IDS[:1], 1, [1], [0], [2], kind)[0].tolist() == [[0.0, 0.0]]
    assert launched("direction_dot", [], IDS[:0], 1, [1], [], kind)[0].shape == (1, 0)


def literals(source, *names):
    """The float32 literals of functions and tables, sorted by size; their signs are left out."""
    found = set()
    for name in names:
        body = source[source.index(name) :]
        body = body[: re.search(r"\n\S*[})]|\n\n\n", body).start()]
        found |= {float(np.float32(number)) for number in re.findall(r"\b\d+\.\d+(?:e-?\d+)?", body)}
    return sorted(found)


def test_every_language_has_the_same_constants():
    """Bits of some thousand normals do not show the last bits of the leading coefficients."""
    here = Path(reference.__file__).parent
    expected = literals((here / "reference.py").read_text(), "_LOG = (", "def box_muller")
    assert len(expected) == 21
    assert literals((here / "triton.py").read_text(), "def box_muller") == expected
    sources = Path(__file__).parents[2] / "csrc"
    for path in (sources / "philox.h", sources / "cpu" / "kernels.inc"):
        assert literals(path.read_text(), "void box_muller") == expected


@triton.jit
def noise_at(out, start, id, direction, k0, k1, BLOCK: tl.constexpr, RADEMACHER: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), noise_block(start, id, direction, k0, k1, BLOCK, RADEMACHER))


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_counters_of_the_largest_tensor(kind):
    start, seed, direction, word = 2**34 - 1024, 2**64 - 3, 2**31 + 9, 2**31 + 1
    per = reference.ELEMENTS_PER_COUNTER[kind]
    out = torch.empty(1024, device=DEVICE)
    noise_at[(1,)](out, start, word, direction, *_triton.key(seed), 1024, kind == "rademacher", enable_fp_fusion=False)
    words = reference.philox((torch.arange(start // per, (start + 1024) // per), direction, word, 0), seed)
    if kind == "rademacher":
        bits = torch.stack(words, 1)[:, :, None] >> torch.arange(32)
        expected = 1.0 - 2.0 * (bits & 1)
    else:
        pairs = [reference.box_muller(words[i], words[i + 1]) for i in (0, 2)]
        expected = torch.stack([normal for pair in pairs for normal in pair], 1)
    assert torch.equal(out.cpu(), expected.reshape(-1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_inner_products_of_rows_that_begin_anywhere(kind, dtype):
    vectors = [torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype) for size in (3 * 1159, 260)]
    check("direction_dot", vectors, IDS[:2], 9, [2], [3, 1], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_are_not_aligned_and_of_several_dtypes(kind):
    vectors = [torch.linspace(-1, 1, 2053)[1:], torch.linspace(-3, 1, 2052, dtype=torch.float64), torch.ones(2, 3).half()]
    check("direction_dot", vectors, IDS, 9, [2], [1, 1, 1], kind)


@pytest.mark.parametrize("kind", KINDS)
def test_several_directions_at_once(kind):
    check("direction_dot", [torch.linspace(-1, 1, 20), torch.ones(3)], IDS[:2], 9, [2, 2**32 - 1, 0], [2, 1], kind)


def test_norms_of_many_blocks_and_of_pieces_with_unequal_numbers_of_them():
    check("direction_norms", IDS, 1, [0], [16384 * 5 + 1, 16384 * 2, 6], [1, 1, 3], "rademacher")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_piece(value):
    vector = torch.ones(12)
    vector[7] = value
    found = launched("direction_dot", [vector], IDS[:1], 1, [0], [3], "gaussian")[0]
    assert found.isfinite().tolist() == [[True, False, True]]


@pytest.mark.parametrize("name", [*LAUNCHERS, "perturb"])
def test_every_op_names_its_kernel_for_chips(name):
    kernel = OPERATORS[name].kernels["CUDA"]
    assert kernel.language == "Triton"
    assert kernel.function is not None


def test_keys_are_the_words_of_the_seed():
    for seed in (0, -1, 2**63, 2**64 - 1, -(2**63), 0x0123456789ABCDEF, 2**31):
        low, high = _triton.key(seed)
        assert max(abs(low), abs(high)) <= 2**31
        assert (low & 0xFFFFFFFF) + ((high & 0xFFFFFFFF) << 32) == seed % 2**64


def test_a_machine_without_triton_says_so(monkeypatch):
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    assert _triton.kernel("fastscape.ops.direction.triton", "directions").reason == "triton is not installed"
    assert not _triton.answers([torch.ones(1)])
