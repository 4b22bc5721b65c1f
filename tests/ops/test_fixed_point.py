"""Integer sums of weighted rows: closed forms, every length at the ends of vectors, and bad input."""

import math
from fractions import Fraction

import pytest
import torch

from fastscape.ops import fixed_point_sum, fixed_point_value, row_largest

ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [*range(1, 35), 1023, 1025, 2049])
def test_integers_of_every_length_are_those_of_exact_fractions(dtype, length):
    """Half-way cases go to even integers, in units of 1/8 and then of 2^-43."""
    columns = torch.arange(length, dtype=torch.float64)
    terms = [((columns - 7) / 16 + scale).to(dtype)[None] for scale in (0.0, 1e-3, -1e5)]
    units = torch.tensor([[[-3, -3]], [[-43, -43]]])
    ends = [length // 3, length]
    total = fixed_point_sum(terms, torch.ones(3, dtype=torch.float64), units, ends, 0, length)
    for column in {0, length // 3, length // 2, length - 1}:
        values = [Fraction(float(term[0, column])) for term in terms]
        high = [round(value * 8) for value in values]
        low = [round((value - Fraction(near, 8)) * 2**43) for value, near in zip(values, high, strict=True)]
        assert total[:, 0, column].tolist() == [sum(high), sum(low)]
    value = fixed_point_value(total, units, ends, 0, torch.float64)
    assert torch.equal(value, total[0].double() / 8 + total[1].double() * 2.0**-43)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_is_infinite_in_the_part_of_what_is_no_number(dtype, odd):
    rows = -torch.arange(1.0, 41.0, dtype=dtype).reshape(2, 20)
    rows[1, 12] = odd
    assert row_largest([rows], [5, 5, 11, 20])[0].tolist() == [[5.0, 0.0, 11.0, 20.0], [25.0, 0.0, 31.0, math.inf]]


def test_rows_are_read_where_they_lie():
    block = torch.arange(60.0).reshape(3, 20)
    for rows in (block[:, 3:15], block[::2, 3:15], block.T[:12, :3].T):
        assert torch.equal(row_largest([rows], [12]), rows.amax(1).double()[None, :, None])
        units = torch.zeros(1, len(rows), 1, dtype=torch.int64)
        assert torch.equal(fixed_point_sum([rows], ONE, units, [12], 2, 9)[0], rows[:, 2:11].long())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": []}, "terms must hold at least one tensor"),
        ({"terms": [torch.ones(2, 5).half()]}, r"terms\[0\] must be torch.float32 or torch.float64"),
        ({"terms": [torch.ones(2, 5), torch.ones(2, 4)]}, r"terms\[1\] must be \[K, D\] on one device"),
        ({"ends": [3, 4]}, "ends must ascend to the 5 columns, got"),
        ({"ends": [4, 3, 5]}, "ends must ascend"),
        ({"weights": torch.ones(2).double()}, r"weights must be float64 \[1\]"),
        ({"weights": torch.ones(1)}, r"weights must be float64 \[1\]"),
        ({"units": torch.zeros(3, 2, 1).long()}, r"units must be int64 \[1 or 2, 2, 1\]"),
        ({"units": torch.zeros(1, 2, 1)}, "units must be int64"),
        ({"first": 6}, "first must"),
        ({"first": 3, "count": 3}, "count must"),
    ],
)
def test_bad_sums_are_refused(change, message):
    given = {
        "terms": [torch.ones(2, 5)],
        "weights": ONE,
        "units": torch.zeros(1, 2, 1).long(),
        "ends": [5],
        "first": 0,
        "count": 5,
    }
    with pytest.raises(ValueError, match=message):
        fixed_point_sum(**(given | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total": torch.ones(1, 2, 5)}, "total must be int64"),
        ({"ends": []}, "ends must name"),
        ({"first": 1}, "first must"),
        ({"dtype": torch.bfloat16}, "dtype must be torch.float32 or torch.float64, got torch.bfloat16"),
    ],
)
def test_bad_integers_are_refused(change, message):
    given = {"total": torch.ones(1, 2, 5).long(), "units": torch.zeros(1, 2, 1).long(), "ends": [5], "first": 0}
    with pytest.raises(ValueError, match=message):
        fixed_point_value(**({"dtype": torch.float32} | given | change))
