"""Units: their bytes, their order, and an evaluation of them in this process."""

import itertools

import numpy as np
import pytest

from fastscape.runs.units import Here, Unit, blocks_of, decode, encode


@pytest.mark.parametrize("shape", list(itertools.product((0, 1, 2, 5), (0, 1, 3))))
def test_a_result_survives_its_bytes_whatever_its_numbers(shape):
    random = np.random.default_rng(shape)
    even, odd = random.integers(0, 2**64, (2, *shape), np.uint64).view(np.float64)  # NaN of any payload, inf, subnormal
    base = float(random.standard_normal())
    written = encode(even, odd, base)
    assert len(written) == 24 + 16 * even.size
    found = decode(written)
    assert (found.even.tobytes(), found.odd.tobytes()) == (even.tobytes(), odd.tobytes())
    assert encode(*found) == written


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.0, 5e-324])
def test_a_loss_of_any_kind_survives(value):
    assert np.float64(decode(encode(np.empty((0, 0)), np.empty((0, 0)), value)).base).tobytes() == np.float64(value).tobytes()


def test_bytes_are_little_endian_in_a_fixed_order():
    written = encode(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), 5.0)
    assert written == np.array([1, 2], "<i8").tobytes() + np.arange(1.0, 6.0, dtype="<f8").tobytes()


@pytest.mark.parametrize("data", [b"", b"\0" * 23, encode(np.ones((2, 3)), np.ones((2, 3)), 1.0)[:-1], b"\xff" * 24])
def test_bytes_of_another_length_are_refused(data):
    with pytest.raises(ValueError, match="data must be a unit's result"):
        decode(data)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"even and odd must be .* got \[2, 3\] and \[3, 2\]"):
        encode(np.ones((2, 3)), np.ones((3, 2)), 0.0)


@pytest.mark.parametrize("name", ["point", "group", "bank", "block"])
@pytest.mark.parametrize("value", [-1, 0.5, True])
def test_a_place_is_a_count(name, value):
    with pytest.raises(ValueError, match=name):
        Unit(**({"point": 0, "group": 0, "bank": 0, "block": 0} | {name: value}))


@pytest.mark.parametrize(("count", "size"), list(itertools.product((0, 1, 2, 7, 8, 9, 200), (1, 2, 3, 8, 17))))
def test_blocks_are_aligned_and_whole(count, size):
    blocks = [Unit(0, 0, 0, block).indices(size) for block in blocks_of(count, size)]
    assert list(itertools.chain(*blocks)) == list(range(-(-count // size) * size))
    assert all(len(block) == size and block.start % size == 0 for block in blocks)


def test_units_are_ordered_by_place_and_known_by_key():
    units = [Unit(*key) for key in itertools.product(range(2), repeat=4)]
    assert sorted({*units}) == units
    assert {Unit(*unit.key) for unit in units} == set(units)


def test_what_does_not_fit_in_the_time_is_not_begun(clock):
    begun = []

    def evaluate(unit):
        begun.append(unit)
        clock.now += 10
        return b"%d" % unit.block

    units, here = [Unit(0, 0, 0, block) for block in range(9)], Here(evaluate)
    assert list(here.map(units, 35)) == [(unit, b"%d" % unit.block) for unit in units[:3]]
    assert begun == units[:3]
    assert list(here.map(units[3:], 9)) == []  # the slowest of before is expected again
    assert list(here.map(units[3:], 11)) == [(units[3], b"3")]


def test_an_error_comes_after_what_was_ready_and_closing_drops_the_rest():
    begun = []

    def evaluate(unit):
        begun.append(unit.block)
        if unit.block == 2:
            raise RuntimeError("no such luck")
        return b""

    units = [Unit(0, 0, 0, block) for block in range(5)]
    found = Here(evaluate).map(units, np.inf)
    assert [next(found)[0], next(found)[0]] == units[:2]
    with pytest.raises(RuntimeError, match="no such luck"):
        next(found)
    stopped = Here(evaluate).map(units[:2], np.inf)
    next(stopped)
    stopped.close()
    assert begun == [0, 1, 2, 0]
