"""Probes beside probes and beside the user's threads: results are those of serial runs, and the process stays as it was."""

import os
import random
import threading
import warnings
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from conftest import model_state
from injection import whole_state
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import fastscape as fs
from fastscape import _creation, _generators
from fastscape._settings import SETTINGS
from fastscape._state import RoundedProducts, exact_arithmetic, kept_generators, plain_arithmetic, preserved_rng, private_draws
from fastscape._warnings import filtered_warnings


def in_thread(work):
    """What a function returns in another thread, which ends before this goes on; what it raises is raised here."""
    found = []

    def run():
        try:
            found.append((work(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = found[0]
    if error is not None:
        raise error
    return value


class Beside:
    """A thread that waits inside a block until it is let go; the caller goes on meanwhile."""

    def __init__(self, block=None):
        self._block, self._inside, self._go = block or nullcontext(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        with self._block:
            self._inside.set()
            self._go.wait()

    def __enter__(self):
        self._thread.start()
        self._inside.wait()
        return self

    def end(self):
        self._go.set()
        self._thread.join()

    def __exit__(self, *_error):
        self.end()


def objective(seed=0, loss=None):
    """A small network with dropout and batch norm in training mode."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
    data = [(torch.randn(8, 5), torch.randint(0, 3, (8,)))]
    if loss is not None:
        return fs.Objective(model, data, loss=loss)
    return fs.Objective(model, data, criterion=F.cross_entropy)


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize("order", ["first in, first out", "first in, last out"])
def test_the_first_block_saves_and_the_last_one_out_restores_in_whatever_order(order):
    before = whole_state()
    with Beside(plain_arithmetic(torch.float64)) as other:
        block = plain_arithmetic(torch.float32)
        block.__enter__()
        if order == "first in, first out":
            other.end()
            assert not torch.backends.mha.get_fastpath_enabled()
            block.__exit__()
        else:
            block.__exit__()
            assert not torch.backends.mha.get_fastpath_enabled()
    assert whole_state() == before


ALONE = [(0, "float64", "loop"), (1, "float32", "loop"), (1, "float64", "vmap")]


@pytest.mark.parametrize("ways", [ALONE, pytest.param([*ALONE, (1, "difference", None)], marks=pytest.mark.slow)])
def test_probes_in_threads_give_what_they_give_alone_and_leave_the_process_as_it_was(ways):
    objectives = [objective(1), objective(2)]
    directions = [fs.Directions(each, count=2) for each in objectives]
    jobs = [
        partial(fs.responses, objectives[which], directions[which], [0.1, 0.3], precision=precision, method=path)
        for which, precision, path in ways
    ]
    alone = [job().even for job in jobs]
    before, models = whole_state(), [model_state(each.model) for each in objectives]
    found = [[] for _ in jobs]

    def repeat(which):
        found[which].extend(jobs[which]().even for _ in range(2))

    threads = [threading.Thread(target=repeat, args=(which,)) for which in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, expected in zip(found, alone, strict=True):
        assert len(results) == 2
        assert all((result == expected).all() for result in results)
    assert whole_state() == before
    assert [model_state(each.model) for each in objectives] == models


def test_a_users_thread_keeps_its_dtype_gradients_autocast_and_draws_beside_an_evaluation():
    torch.manual_seed(5)
    expected = [torch.randn(3), torch.randn(3)]
    torch.manual_seed(5)
    with Beside(exact_arithmetic(torch.float64)):
        first = torch.randn(3)
        assert first.dtype == torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert torch._C._len_torch_function_stack() == 0
    second = torch.randn(3)
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])


def test_rounded_products_take_turns_with_plain_arithmetic():
    leaf = torch.backends.mkldnn.matmul
    before, order, wanted = whole_state(), [], threading.Event()

    def rounding():
        with plain_arithmetic(torch.float32):
            wanted.set()
            with RoundedProducts():
                order.append(("rounded", leaf.fp32_precision))
            order.append(("plain again", leaf.fp32_precision))

    with Beside(plain_arithmetic(torch.float32)) as other:
        thread = threading.Thread(target=rounding)
        thread.start()
        wanted.wait()
        assert leaf.fp32_precision == "ieee"
        assert not order
        other.end()
        thread.join()
    assert order == [("rounded", "bf16"), ("plain again", "ieee")]
    assert whole_state() == before


def test_two_threads_inside_plain_arithmetic_that_both_round_do_not_wait_for_each_other():
    meet, seen = threading.Barrier(2), []

    def rounding():
        with plain_arithmetic(torch.float32):
            meet.wait()
            for _ in range(3):
                with RoundedProducts():
                    seen.append(SETTINGS._rounding == threading.get_ident())

    threads = [threading.Thread(target=rounding) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 6


def test_parametrizations_cached_by_another_thread_are_made_anew_inside_and_stay_cached_outside():
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(3, 3))
    with parametrize.cached():
        kept = layer.weight
        with Beside(plain_arithmetic(torch.float32)):
            assert layer.weight is kept
            assert in_thread(lambda: inside(lambda: layer.weight)) is not kept
            with parametrize.cached():
                assert layer.weight is kept
        assert layer.weight is kept
    assert parametrize._cache_enabled == 0
    assert not parametrize._cache


def inside(work):
    with plain_arithmetic(torch.float32):
        return work()


def test_filters_of_warnings_are_of_their_thread():
    before = list(map(id, warnings.filters))
    with Beside(), filtered_warnings("hush"):
        warnings.warn("hush: nobody hears", stacklevel=1)
        with pytest.raises(UserWarning, match="hush"):
            in_thread(lambda: warnings.warn("hush: all hear", stacklevel=1))
        with filtered_warnings("loud", action="error"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            in_thread(lambda: warnings.warn("loud", stacklevel=1))
    assert list(map(id, warnings.filters)) == before


# ---------------------------------------------------------------------- what a forward creates

MAKES = {
    "zeros": lambda x: torch.zeros(2) + 0 * x,
    "tensor": lambda x: torch.tensor([0.1, 0.2]) * x,
    "scalar": lambda x: torch.tensor(0.1) * x,
    "complex": lambda x: (torch.tensor(0.1j) * x).abs(),
    "full": lambda x: torch.full((2,), 0.1) * x,
    "linspace": lambda x: torch.linspace(0, 1, 2) * x + torch.eye(2)[0],
    "arange": lambda x: torch.arange(0.0, 0.2, 0.1) * x,
    "integers": lambda x: torch.arange(2) * 0.1 + x,
    "from the right": lambda x: 0.1 * torch.arange(2) + 1 / torch.arange(1, 3) + 0.1 - torch.arange(2) + x,
    "root": lambda x: torch.sqrt(torch.arange(2)) * x,
    "quotient": lambda x: torch.arange(2) / 3 * x,
    "power": lambda x: torch.arange(1, 3) ** -0.5 + 2.0 ** torch.arange(2) * x,
    "mask": lambda x: (x > 0) * 0.1 + torch.where(x > 0, 0.1, 0.2) + torch.where(x > 0, torch.arange(2), 0.3),
    "explicit": lambda x: torch.tensor([0.1, 0.2], dtype=torch.float32).double() * x,
    "array": lambda x: torch.as_tensor(np.array([0.1, 0.2], dtype=np.float32)) * x,
    "as it says": lambda x: torch.zeros(2, dtype=torch.get_default_dtype()) + x,
    "conversion": lambda x: torch.arange(2).float() * torch.tensor(1 / 3) * x,
    "drawn": lambda x: torch.rand(2) * x + torch.normal(0.0, 1.0, (2,)),
    "window": lambda x: torch.hann_window(4)[:2] * x,
}


LEGACY = {  # by torch's default alone
    "legacy constructor": lambda x: torch.Tensor([0.1, 0.2]) * x,
    "by size": lambda x: torch.Tensor(2).fill_(0.1) * x,
    "transform of integers": lambda x: torch.fft.fft(torch.arange(4)).real[:2] * x,
    "rare operation": lambda x: torch.copysign(torch.arange(2), torch.arange(2)) + x,
    "kept getter": lambda x, kept=torch.get_default_dtype: torch.zeros(2, dtype=kept()) + x,
}


@pytest.mark.parametrize("narrow", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "alone"), [*((name, False) for name in MAKES), *((name, True) for name in {**MAKES, **LEGACY})])
def test_tensors_that_a_forward_creates_are_those_by_torchs_default_dtype(name, alone, narrow, monkeypatch):
    monkeypatch.setattr(_creation, "alone", lambda: alone)
    make = {**MAKES, **LEGACY}[name]
    x = torch.tensor([0.3, -0.7], dtype=narrow)
    torch.set_default_dtype(narrow)
    try:
        torch.manual_seed(0)
        expected = make(x)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    with plain_arithmetic(narrow):
        found = make(x)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_an_inner_block_of_the_process_dtype_creates_in_that():
    with plain_arithmetic(torch.float64):
        assert torch.ones(1).dtype == (torch.ones(1, dtype=torch.int64) * 0.5).dtype == torch.float64
        with plain_arithmetic(torch.float32):
            assert torch.ones(1).dtype == (torch.ones(1, dtype=torch.int64) * 0.5).dtype == torch.float32
        assert torch.ones(1).dtype == torch.float64
    assert torch.get_default_dtype is _creation._system_default


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operations that reach a device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += 1
        return function(*arguments, **keywords or {})


def test_a_forward_takes_as_many_operations_in_float64_and_no_mode_in_the_process_dtype():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)).double()
    x, counts = torch.randn(3, 4, dtype=torch.float64), []
    for block in (torch.no_grad(), plain_arithmetic(torch.float64)):
        with block, Counted() as counted:
            model(x)
        counts.append(counted.count)
    assert counts[0] == counts[1]
    with plain_arithmetic(torch.float32):
        assert torch._C._len_torch_function_stack() == 0


# ---------------------------------------------------------------------- random numbers


def numbers():
    """From all three global generators."""
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), [random.random(), random.randint(0, 10**9)]


@pytest.fixture
def seeded():
    """Set the global generators, which are the test's."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


BLOCKS = {"preserved": preserved_rng, "evaluation": lambda: exact_arithmetic(torch.float32), "kept": kept_generators}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_drawn_inside_goes_on_from_the_global_generators_and_leaves_them(seeded, name, beside):
    before, known = whole_state(), {}
    with Beside() if beside else nullcontext():
        with BLOCKS[name]():
            with private_draws(known, "model"):
                first = numbers()
            with private_draws(known, "model"), BLOCKS[name]():
                second = numbers()
            with private_draws(known, "model"):
                assert numbers() == second  # the inner block gave back what was drawn in it
        assert whole_state() == before
    assert numbers() == first
    assert numbers() == second


@pytest.mark.parametrize("name", ["preserved", "evaluation"])
def test_threads_that_draw_beside_never_get_a_number_twice(seeded, name):
    drawn = []
    with Beside() as idle:
        for _ in range(5):
            with BLOCKS[name](), private_draws({}, "model"):
                torch.manual_seed(1)
                random.seed(1)
                np.random.seed(1)
                inside = numbers()
                drawn.append(in_thread(numbers))
                assert numbers() != inside
            drawn.append(in_thread(numbers))
        idle.end()
    for each in zip(*drawn, strict=True):
        values = [value for part in each for value in part]
        assert len(set(values)) == len(values)
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    assert drawn == [numbers() for _ in drawn]  # those of nobody beside


OPERATIONS = {
    "dropout": lambda: F.dropout(torch.ones(40)),
    "dropout with a graph": lambda: F.dropout(torch.ones(40, requires_grad=True)).detach(),
    "alpha dropout": lambda: F.alpha_dropout(torch.ones(40), training=True),
    "feature dropout": lambda: F.dropout2d(torch.ones(2, 20, 2, 2)),
    "leaky": lambda: F.rrelu(-torch.ones(9), training=True),
    "attention": lambda: F.scaled_dot_product_attention(*torch.ones(3, 1, 4, 4), dropout_p=0.5),
    "recurrent": lambda: recurrent()(torch.ones(3, 2, 4))[0].detach(),
    "like": lambda: torch.rand_like(torch.ones(3)) + torch.randn_like(torch.ones(3)) + torch.randint_like(torch.ones(3), 2, 9),
    "integers": lambda: torch.cat([torch.randint(9, (3,)), torch.randint(2, 9, (3,)), torch.randperm(5)]),
    "in place": lambda: (
        torch.empty(4).normal_() + torch.empty(4).uniform_() + torch.empty(4).exponential_() + torch.ones(4).random_(9)
    ),
    "multinomial": lambda: torch.multinomial(torch.ones(6), 4),
    "gumbel": lambda: F.gumbel_softmax(torch.zeros(5)),
    "distributions": lambda: torch.distributions.Gamma(2.0, 1.0).sample((3,)) + torch.distributions.Beta(2.0, 1.0).sample((3,)),
    "initial": lambda: nn.Linear(3, 3).weight.detach(),
    "seeded": lambda: [torch.manual_seed(7), torch.rand(3)][1],
    "forked": lambda: forked() + torch.rand(3),
    "its own": lambda: torch.rand(3, generator=torch.Generator().manual_seed(2)),
}


def recurrent():
    """An LSTM with dropout between its layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.LSTM(4, 4, 2, dropout=0.5)


def forked():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.rand(3)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_draw_beside_threads_what_they_draw_alone(seeded, name):
    with preserved_rng():
        alone = OPERATIONS[name]()
    state = torch.get_rng_state()
    with Beside(), preserved_rng():
        assert torch.equal(OPERATIONS[name](), alone)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(torch.random.default_generator) is torch.Generator


def test_data_that_shuffle_are_read_alike_beside_threads_and_draw_nothing(seeded):
    loader = torch.utils.data.DataLoader([(torch.full((5,), float(i)), i % 3) for i in range(12)], batch_size=4, shuffle=True)
    model = nn.Linear(5, 3)
    before = torch.get_rng_state()
    first = fs.Objective(model, loader, criterion=F.cross_entropy)
    with Beside():
        second = fs.Objective(model, loader, criterion=F.cross_entropy)
    assert first.data_fingerprint() == second.data_fingerprint()
    assert torch.equal(torch.get_rng_state(), before)


def seeded_loss(model, batch):
    """A loss that draws, from a seed of its own; by an operation of tensors too, which a recorded program would run again."""
    torch.manual_seed(0)
    inputs, targets = batch
    shift = torch.distributions.Normal(0.0, 1.0).sample(inputs.shape[-1:])
    return F.cross_entropy(model(F.dropout(inputs) + shift), targets)


def test_a_loss_that_seeds_itself_is_that_of_serial_runs_and_seeds_nobody_beside(seeded):
    probed = objective(loss=seeded_loss)
    alone = fs.losses(probed, fs.Directions(probed, count=2), [0.1], method="loop")
    fresh, state = objective(loss=seeded_loss), torch.get_rng_state()
    with Beside():
        beside = fs.losses(fresh, fs.Directions(fresh, count=2), [0.1], method="loop")
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(beside, alone)
    responses = fs.responses(probed, fs.Directions(probed, count=2), [0.1], precision="difference")
    fresh = objective(loss=seeded_loss)
    state = torch.get_rng_state()
    with Beside():
        found = fs.responses(fresh, fs.Directions(fresh, count=2), [0.1], precision="difference")
        assert torch.equal(torch.get_rng_state(), state)
    assert (found.even == responses.even).all()


def test_a_model_that_draws_nothing_is_watched_once(monkeypatch):
    seen, plain = [], _generators._Drawing._begin
    monkeypatch.setattr(_generators._Drawing, "_begin", lambda self, later: seen.append(1) or plain(self, later))
    probed = objective()
    with Beside():
        probed.loss()
        assert len(seen) == 1
        probed.loss()
        probed.gradient()
    assert len(seen) == 1


def test_a_random_loss_is_refused_beside_threads_too(seeded):
    def loss(model, batch):
        return F.cross_entropy(model(F.dropout(batch[0])), batch[1])

    probed, state = objective(loss=loss), torch.get_rng_state()
    with Beside(), pytest.raises(RuntimeError, match="draws random numbers"):
        fs.losses(probed, fs.Directions(probed, count=1), [0.1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_that_is_forked_beside_an_evaluation_can_evaluate():
    with Beside(plain_arithmetic(torch.float64)):
        child = os.fork()
        if not child:
            try:
                with plain_arithmetic(torch.float32), RoundedProducts():
                    pass
                os._exit(0 if torch.backends.mha.get_fastpath_enabled() else 3)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
