"""Sums whose bits depend on nothing but the terms: on no order, and on no way to deal them to processes."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastscape.curvature.exact_sum import Alone, disjoint, exact_sum, largest, limbs_for, summed

PARTS = [slice(0, 3), slice(3, 3), slice(3, 8), slice(8, 9)]
D = PARTS[-1].stop


def terms(seed, count, spread, dtype=torch.float64, rows=2):
    """Terms whose elements lie ``spread`` decades apart, with cancellation."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((count, rows, D)) * 10.0 ** draw.uniform(*spread, (count, rows, D))
    values[count // 2 :: 3] = -values[: len(values[count // 2 :: 3])]
    return [torch.tensor(value).to(dtype) for value in values]


def bits(tensor):
    return tensor.numpy().tobytes()


def total(found, weights, limbs=2):
    return exact_sum(found, weights, PARTS, count=len(found), limbs=limbs, over=Alone())


def dealt(found, weights, owners, limbs=2):
    """The sum by as many processes as there are owners, one after another: integers and maxima as they would exchange them."""
    mine = [[b for b, owner in enumerate(owners) if owner == rank] for rank in range(max(owners) + 1)]
    shares = [([found[b] for b in own] or [torch.zeros_like(found[0])], [weights[b] for b in own] or [1.0]) for own in mine]
    top = torch.stack([largest(*share, PARTS) for share in shares]).amax(0)
    integers = []

    class Recorded(Alone):
        def add(self, tensor):
            integers.append(tensor)
            return torch.zeros_like(tensor)

    class Summed(Alone):
        def add(self, tensor):
            return sum(integers)

    for share in shares:
        summed(*share, PARTS, top, count=len(found), limbs=limbs, over=Recorded())
    return summed(*shares[0], PARTS, top, count=len(found), limbs=limbs, over=Summed())


SPREADS = [(-2, 2), (-300, -290), (290, 300), (-300, 300), (-323, -308)]


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 65])
@pytest.mark.parametrize("limbs", [1, 2])
def test_any_order_and_any_dealing_give_the_same_bits(spread, count, limbs):
    found = terms(count, count, spread)
    weights = [(b % 7 + 1) / 31 for b in range(count)]
    expected = bits(total(found, weights, limbs))
    draw = np.random.default_rng(1)
    for _ in range(4):
        order = draw.permutation(count)
        assert bits(total([found[b] for b in order], [weights[b] for b in order], limbs)) == expected
    for ranks in (2, 3, 5):
        owners = [*draw.integers(0, ranks, count - 1), ranks - 1]  # some have none
        assert bits(dealt(found, weights, owners, limbs)) == expected


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("count", [1, 3, 8, 1000])
@pytest.mark.parametrize("limbs", [1, 2])
def test_the_error_is_half_a_quantum_of_each_term(spread, count, limbs):
    """Against exact fractions: B quanta / 2, rounding of each product to float64, and one rounding of the sum."""
    found = terms(count + 17, count, spread, rows=1)
    weights = [1.0 / (b + 1) for b in range(count)]
    got = total(found, weights, limbs)
    top = largest(found, weights, PARTS)
    bits_of_limb = 62 - math.ceil(math.log2(count))
    for index, part in enumerate(PARTS):
        quantum = Fraction(2) ** max(math.frexp(float(top[0, index]))[1] - limbs * bits_of_limb, -1074)
        for d in range(part.start, part.stop)[:2]:
            products = [Fraction(float(term[0, d])) * Fraction(weight) for term, weight in zip(found, weights, strict=True)]
            value = Fraction(float(got[0, d]))
            rounding = sum(map(abs, products)) / 2**53 + abs(value) / 2**52 + Fraction(2) ** -1074
            assert abs(value - sum(products)) <= count * quantum / 2 + rounding


@pytest.mark.parametrize("count", [1, 5, 64, 1000])
def test_two_limbs_give_fsum(count):
    """Terms of one decade: nothing is lost, and the sum is the correctly rounded one."""
    found = terms(count, count, (0, 1), rows=1)
    got = total(found, [1.0] * count)
    for d in range(D):
        assert float(got[0, d]) == math.fsum(float(term[0, d]) for term in found)


@pytest.mark.parametrize("count", [2, 8, 64])
def test_one_limb_is_enough_for_float32(count):
    """The sum rounded to float32 is the float32 nearest to the sum in float64, for elements near the largest."""
    found = terms(count, count, (0, 1), dtype=torch.float32, rows=1)
    assert limbs_for(torch.float32, count) == 1
    got = total(found, [1.0] * count, 1)
    for d in range(D):
        exact = math.fsum(float(term[0, d]) for term in found)
        assert (
            abs(float(got[0, d]) - exact) <= count**2 * 2.0**-61 * max(float(t.abs().max()) for t in found) + abs(exact) * 2**-52
        )


def test_columns_that_pass_a_piece_at_a_time_give_the_same_bits(monkeypatch):
    """Whatever the size of a piece, in float64 and rounded from it."""
    found, weights = terms(2, 8, (-30, 30)), [0.125] * 8
    whole = total(found, weights)
    narrow = exact_sum(found, weights, PARTS, count=8, limbs=2, over=Alone(), dtype=torch.float32)
    assert torch.equal(narrow, whole.float())
    for size in (1, 64, 96, 160):
        monkeypatch.setattr("fastscape.curvature.exact_sum._PIECE", size)
        assert bits(total(found, weights)) == bits(whole)


def test_limbs_follow_from_dtype_and_number_of_terms():
    assert [limbs_for(torch.float32, 64), limbs_for(torch.float32, 65), limbs_for(torch.float64, 1)] == [1, 2, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_makes_its_row_nan_and_no_other(value):
    found = terms(0, 5, (-1, 1))
    found[3][1, 4] = value
    got = total(found, [0.2] * 5)
    assert got[1].isnan().all()
    assert got[0].isfinite().all()
    assert bits(dealt(found, [0.2] * 5, [0, 1, 2, 1, 0])) == bits(got)
    assert bits(got[0]) == bits(total([term[:1] for term in found], [0.2] * 5)[0])


def test_zeros_and_the_smallest_numbers_are_kept():
    tiny = 5e-324
    found = [torch.full((1, D), scale * tiny, dtype=torch.float64) for scale in (1, 3, -2)]
    found.append(torch.zeros(1, D, dtype=torch.float64))
    assert total(found, [1.0] * 4).tolist() == [[2 * tiny] * D]
    assert total(found[3:], [1.0]).tolist() == [[0.0] * D]


def test_a_sum_beyond_float64_is_infinite_and_no_intermediate_is():
    largest_ = torch.finfo(torch.float64).max
    found = [torch.full((1, D), sign * largest_, dtype=torch.float64) for sign in (1, 1, -1)]
    assert total(found, [1.0] * 3).tolist() == [[largest_] * D]
    assert total(found[:2], [1.0] * 2).tolist() == [[math.inf] * D]


def test_every_parameter_and_row_has_a_quantum_of_its_own():
    """A tensor 1e30 smaller than another in the same vector is summed as it would be alone."""
    found = terms(3, 6, (0, 1))
    small = [term.clone() for term in found]
    for term in small:
        term[0, PARTS[2]] *= 2.0**-100
    got, plain = total(small, [0.5] * 6, 1), total(found, [0.5] * 6, 1)
    assert torch.equal(got[0, PARTS[2]], plain[0, PARTS[2]] * 2.0**-100)
    assert torch.equal(got[1], plain[1])
    assert torch.equal(got[0, PARTS[0]], plain[0, PARTS[0]])


def test_numbers_of_disjoint_processes_come_back_bit_for_bit():
    values = np.array([[1.5, -0.0, math.nan], [math.inf, 1e-310, -7.0]])

    class Two(Alone):
        def add(self, tensor):
            other = np.zeros_like(values)
            other[1] = values[1]
            return tensor + torch.from_numpy(other).view(torch.int64)

    own = np.zeros_like(values)
    own[0] = values[0]
    assert disjoint(own, Two(), torch.device("cpu")).tobytes() == values.tobytes()
