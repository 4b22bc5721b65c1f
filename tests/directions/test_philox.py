"""The generator is Philox4x32-10 and a Box-Muller of exact operations, independent of everything but its counter."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastscape.ops.direction import reference as px

FLOAT64_ERROR = 6.6e-7  # largest difference from a float64 Box-Muller

# Random123's known answers for philox4x32-10: counter, key, output
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def scalar_philox(counter, key):
    """Plain integers, written from the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def exact_normals(word0, word1):
    """Box-Muller of two words in float64."""
    u = ((word0 >> 9) + 0.5) * 2.0**-23
    radius, angle = math.sqrt(-2 * math.log(u)), 2 * math.pi * word1 / 2**32
    return radius * math.cos(angle), radius * math.sin(angle)


GOLDEN = [
    "beb4b513",
    "3db46d6f",
    "3fcd2dc9",
    "3f5fcf4f",
    "40282d34",
    "3b15b156",
    "bf7cb668",
    "3d57a098",
]  # seed 1, direction 0, tensor id 42


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_random123(counter, key, expected):
    words = px.philox([torch.tensor([word]) for word in counter], key[0] | key[1] << 32)
    assert tuple(int(word) for word in words) == expected
    assert scalar_philox(counter, key) == expected


def test_elements_take_the_words_that_the_specification_says():
    seed, direction, tensor_id, stream = 0x0123456789ABCDEF, 77, 0xDEADBEEF, 5
    drawn = px.draw(seed, direction, [tensor_id], [11], stream=stream)[0]
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for element in range(11):
        words = scalar_philox((element // 4, direction, tensor_id, stream), key)
        pair = words[:2] if element % 4 < 2 else words[2:]
        assert float(drawn[element]) == pytest.approx(exact_normals(*pair)[element % 2], abs=FLOAT64_ERROR)


def test_signs_take_the_bits_that_the_specification_says():
    drawn = px.draw(99, 3, [1234], [300], "rademacher")[0]
    for element in range(300):
        word = scalar_philox((element // 128, 3, 1234, 0), (99, 0))[(element % 128) // 32]
        assert float(drawn[element]) == (-1.0 if word >> (element % 32) & 1 else 1.0)


def test_golden_bits():
    """float32 bit patterns that native, Triton and CUDA kernels must reproduce."""
    bits = px.draw(1, 0, [42], [8])[0].view(torch.int32).tolist()
    assert [f"{value & 0xFFFFFFFF:08x}" for value in bits] == GOLDEN


def test_normals_agree_with_float64_everywhere():
    r0 = torch.tensor([0, 511, 512, 2**31, 2**32 - 1, 2**32 - 512, 123456789, 2**22, 2**31 - 1])
    r1 = torch.tensor([0, 2**29 - 1, 2**29, 2**30, 2**31, 3 * 2**29, 2**32 - 1, 3 * 2**30, 7 * 2**29])
    grid0, grid1 = torch.meshgrid(r0, r1, indexing="ij")
    n0, n1 = px.box_muller(grid0.reshape(-1), grid1.reshape(-1))
    for index, (a, b) in enumerate(zip(grid0.reshape(-1).tolist(), grid1.reshape(-1).tolist(), strict=True)):
        c, s = exact_normals(a, b)
        assert float(n0[index]) == pytest.approx(c, abs=FLOAT64_ERROR)
        assert float(n1[index]) == pytest.approx(s, abs=FLOAT64_ERROR)


def test_largest_normal_is_5_77():
    n0, _ = px.box_muller(torch.tensor([0]), torch.tensor([0]))
    assert float(n0) == pytest.approx(5.77, abs=5e-3)


def test_normals_are_standard_and_directions_uncorrelated():
    count = 200_000
    first, second = (px.draw(7, index, [1], [count])[0].double().numpy() for index in (0, 1))
    assert stats.kstest(first, "norm").pvalue > 1e-3
    assert abs(stats.kurtosis(first)) < 5 * math.sqrt(24 / count)
    for lag in (1, 2, 3, 4):
        assert abs(np.corrcoef(first[:-lag], first[lag:])[0, 1]) < 5 / math.sqrt(count)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(count)


def test_signs_are_fair_and_independent():
    signs = px.draw(7, 0, [1], [200_000], "rademacher")[0].double()
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 5 / math.sqrt(len(signs))
    for lag in (1, 32, 128):
        assert abs(float((signs[:-lag] * signs[lag:]).mean())) < 5 / math.sqrt(len(signs))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_bits_do_not_depend_on_block_size_company_or_length(distribution, monkeypatch):
    sizes, ids = [1, 7, 130, 5000, 129], [5, 6, 7, 8, 9]
    together = px.draw(3, 11, ids, sizes, distribution)
    for block in (1, 3, 64):
        monkeypatch.setattr(px, "BLOCK", block)
        for whole, part in zip(together, px.draw(3, 11, ids, sizes, distribution), strict=True):
            assert torch.equal(whole, part)
    monkeypatch.undo()
    for whole, tensor_id, size in zip(together, ids, sizes, strict=True):
        assert torch.equal(px.draw(3, 11, [tensor_id], [size], distribution)[0], whole)
        longer = px.draw(3, 11, [tensor_id], [size + 77], distribution)[0]
        assert torch.equal(longer[:size], whole)


def test_seed_direction_tensor_and_stream_all_matter():
    reference = px.draw(3, 11, [5], [64])[0]
    for other in (
        px.draw(4, 11, [5], [64]),
        px.draw(3 + 2**32, 11, [5], [64]),
        px.draw(3, 12, [5], [64]),
        px.draw(3, 11, [6], [64]),
        px.draw(3, 11, [5], [64], stream=1),
    ):
        assert (other[0] == reference).float().mean() < 0.1


def test_threads_do_not_change_the_bits():
    before = torch.get_num_threads()
    reference = px.draw(3, 11, [5], [300_000])[0]
    try:
        torch.set_num_threads(2 if before == 1 else 1)
        assert torch.equal(px.draw(3, 11, [5], [300_000])[0], reference)
    finally:
        torch.set_num_threads(before)


def test_tensor_ids_are_those_of_the_names_alone(monkeypatch):
    alone, company = px.tensor_ids(["layer.weight"]), px.tensor_ids(["layer.weight", "a", "b", "layer.bias"])
    assert alone["layer.weight"] == company["layer.weight"]
    assert len(set(company.values())) == 4
    assert alone["layer.weight"] == 0x1E5F79E8

    class Constant:
        def __init__(self, _data):
            pass

        def digest(self):
            return b"\xff\xff\xff\xff" + bytes(28)

    monkeypatch.setattr(px.hashlib, "sha256", Constant)
    assert px.tensor_ids(["b", "a"]) == {"a": 0xFFFFFFFF, "b": 0}
