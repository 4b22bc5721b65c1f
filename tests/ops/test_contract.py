"""What every registered op keeps: its fake, its batching rule, its refusals, and that kernels give the reference's results."""

import itertools
import random
import warnings

import pytest
import torch
from ops.samples import BITWISE, PRODUCTS, SAMPLES, flat, large

from fastscape.ops import _native
from fastscape.ops._registry import OPERATORS


def same(one, other):
    """Equal values, NaN where the other has NaN."""
    return torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def arguments(name, index):
    return list(SAMPLES[name]())[index]


CASES = [(name, index) for name in OPERATORS for index in range(len(list(SAMPLES[name]())))]
DIFFERENTIABLE = [name for name in OPERATORS if any(t.is_floating_point() for t in flat(arguments(name, 0)))]


@pytest.fixture(scope="module", autouse=True)
def _torch_has_warned_about_itself():
    """The first jvp of a process imports decompositions that use a deprecated part of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))
        torch.compile(torch.sin, backend="eager")(torch.ones(1))


def error(found, exact):
    return max(
        (float((a.double() - b.double()).abs().max()) for a, b in zip(found, exact, strict=True) if a.numel()), default=0.0
    )


@pytest.fixture(params=_native.ISAS)
def isa(request):
    """Each instruction set that this processor has, forced."""
    if not _native.library.available:
        pytest.skip(_native.library.reason)
    before = _native.library.isa
    if _native.library.set_isa(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _native.library.set_isa(before)


def test_every_op_has_samples():
    assert set(SAMPLES) == set(OPERATORS)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_kernels_give_the_reference(name, index, isa):
    operator, args = OPERATORS[name], arguments(name, index)
    found, expected = flat(operator(*args)), flat(operator.reference(*args))
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    if name in BITWISE:
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
        return
    wide = [[t.double() for t in a] if isinstance(a, list) and flat(a) else a.double() if _floating(a) else a for a in args]
    exact = flat(operator.reference(*wide))
    scale = max((float(tensor.abs().max()) for tensor in exact if tensor.numel()), default=0.0)
    eps = torch.finfo(found[0].dtype).eps
    assert error(found, exact) <= 2 * error(expected, exact) + 16 * eps * scale  # sums of 20,000 terms in another order


def _floating(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@pytest.mark.parametrize(("name", "index"), CASES)
def test_the_same_twice_and_arguments_unmodified(name, index):
    args = arguments(name, index)
    before = [tensor.clone() for tensor in flat(args)]
    first, second = flat(OPERATORS[name](*args)), flat(OPERATORS[name](*args))
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert all(same(a, b) for a, b in zip(before, flat(args), strict=True))
    inputs = {tensor.untyped_storage().data_ptr() for tensor in flat(args) if tensor.numel()}
    assert not inputs & {tensor.untyped_storage().data_ptr() for tensor in first if tensor.numel()}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", OPERATORS)
def test_results_do_not_depend_on_threads(name, threads):
    args = large(name)
    expected = flat(OPERATORS[name].reference(*args))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = flat(OPERATORS[name](*args))
    finally:
        torch.set_num_threads(before)
    again = flat(OPERATORS[name](*args))
    for one, other, exact in zip(found, again, expected, strict=True):
        if name in BITWISE:
            assert same(one, exact)
        else:
            torch.testing.assert_close(one, exact, rtol=1e-5, atol=1e-3)  # a missing part would be far off
        if name not in PRODUCTS:
            assert same(one, other)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_opcheck(name, index):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from its tracing of the op
        args = arguments(name, index)
        comparable = not any(
            bool(tensor.isnan().any()) for tensor in flat(args)
        )  # opcheck's comparisons take NaN for a difference
        every = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(OPERATORS[name].overload, args, test_utils=every if comparable else every[:3])


@pytest.mark.parametrize(("name", "index"), CASES)
def test_fake_metadata_is_the_real_one(name, index):
    from torch._subclasses.fake_tensor import FakeTensorMode

    args = arguments(name, index)
    real = flat(OPERATORS[name](*args))
    with FakeTensorMode() as mode:
        fake = flat(OPERATORS[name](*[_faked(mode, argument) for argument in args]))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device)


def _faked(mode, value):
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    return [_faked(mode, item) for item in value] if isinstance(value, list) and flat(value) else value


@pytest.mark.parametrize("name", OPERATORS)
def test_vmap_is_the_loop_for_every_pattern_of_dims(name):
    args = arguments(name, 0)
    tensors = flat(args)
    alone = [tuple(0 if place == which else None for place in range(len(tensors))) for which in range(len(tensors))]
    every = list(itertools.product([None, 0, -1], repeat=len(tensors)))[1:]
    for pattern in {*alone, *random.Random(0).sample(every, min(len(every), 25))}:
        batched = [
            tensor if dim is None else torch.stack([tensor, tensor + tensor.new_ones(())], dim)
            for tensor, dim in zip(tensors, pattern, strict=True)
        ]
        call = lambda *values: OPERATORS[name](*_rebuilt(args, iter(values)))  # noqa: E731
        found = flat(torch.vmap(call, in_dims=pattern)(*batched))
        picked = [[t if dim is None else t.select(dim, row) for t, dim in zip(batched, pattern, strict=True)] for row in range(2)]
        expected = [torch.stack(column) for column in zip(*[flat(call(*values)) for values in picked], strict=True)]
        assert all(same(a, b) for a, b in zip(found, expected, strict=True)), pattern


def _rebuilt(value, tensors):
    """The arguments with their tensors replaced, in order."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    return [_rebuilt(item, tensors) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("how", ["requires_grad", "grad", "jvp", "jvp of grad", "vmap of jvp", "compiled jvp"])
def test_derivatives_are_refused(name, how):
    args = arguments(name, 0)
    place = next(i for i, tensor in enumerate(flat(args)) if _floating(tensor) and tensor.numel())
    start = flat(args)[place].clone()

    def call(value):
        tensors = flat(args)
        tensors[place] = value
        return sum(tensor.double().sum() for tensor in flat(OPERATORS[name](*_rebuilt(args, iter(tensors)))))

    ones = torch.ones_like(start)
    attempts = {
        "requires_grad": lambda: call(start.requires_grad_()),
        "grad": lambda: torch.func.grad(call)(start),
        "jvp": lambda: torch.func.jvp(call, (start,), (ones,)),
        "jvp of grad": lambda: torch.func.jvp(torch.func.grad(call), (start,), (ones,)),
        "vmap of jvp": lambda: torch.vmap(lambda t: torch.func.jvp(call, (start,), (t,))[1])(torch.stack([ones, ones])),
        "compiled jvp": lambda: torch.compile(lambda t: torch.func.jvp(call, (t,), (ones,))[1], backend="eager")(start),
    }
    with pytest.raises(Exception, match=f"fastscape::{name} has no derivative rule"):
        attempts[how]()


@pytest.mark.parametrize("name", OPERATORS)
def test_nothing_is_refused_where_no_derivative_is_taken(name):
    args = arguments(name, 0)
    tensors = [tensor.requires_grad_() if _floating(tensor) else tensor for tensor in flat(args)]
    with torch.no_grad():
        assert flat(OPERATORS[name](*_rebuilt(args, iter(tensors))))


@pytest.mark.parametrize(("name", "index"), CASES)
def test_every_byte_of_the_results_is_written(name, index):
    """Uninitialised memory holds NaN in deterministic mode; a kernel that skipped an element would leave it."""
    expected = flat(OPERATORS[name](*arguments(name, index)))
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        found = flat(OPERATORS[name](*arguments(name, index)))
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def _every_second(tensor):
    return torch.stack([tensor, -tensor], -1)[..., 0]


def _wider_rows(tensor):
    return torch.cat([tensor, tensor - 1], -1)[..., : tensor.shape[-1]]


@pytest.mark.parametrize("layout", [_every_second, _wider_rows])
@pytest.mark.parametrize("name", OPERATORS)
def test_layouts_do_not_matter(name, layout):
    args = arguments(name, 0)
    strided = [layout(t) if _floating(t) else t for t in flat(args)]
    found = flat(OPERATORS[name](*_rebuilt(args, iter(strided))))
    for a, b in zip(found, flat(OPERATORS[name](*args)), strict=True):
        if name in BITWISE:
            assert same(a, b)
        else:  # matrix products of torch choose their kernels by strides
            torch.testing.assert_close(a, b)
