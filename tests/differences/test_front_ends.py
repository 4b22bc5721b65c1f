"""A traced program and a model that is called with carriers give the same lanes: two ways to the same rules."""

import pytest
import torch
from differences.architectures import ARCHITECTURES, Forward, lin, vectors
from differences.harness import problem, relative
from torch import nn
from torch.nn import functional as F

from fastscape.differences.subclass import AliasedWriteError
from fastscape.differences.tracing_errors import UntraceableError

ALIASED = {"swin_v2", "convolutions", "in_place_on_views"}  # write through views, into fresh tensors
LARGE = {"resnet18", "mobilenet_v3", "mobilenet_v2", "bottleneck_resnext", "swin", "bert_eager", "t5", "llama"}
REFUSED = {"loss_ctc"}
RADII = (0.0, 1e-6, 1e-2)


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - ALIASED - LARGE - REFUSED))
def test_the_graph_and_the_subclass_agree(name):
    model, data, options = ARCHITECTURES[name]()
    case = problem(model, data, count=2, **options)
    first, second, _ = case.lanes(RADII)
    other_first, other_second, _ = case.lanes(RADII, propagate=case.dispatched.lanes)
    assert relative(case.dispatched.loss(), case.propagation.loss()) < 1e-12
    for j in range(len(RADII)):
        assert relative(other_first[:, j], first[:, j]) < 1e-9
        assert relative(other_second[:, j], second[:, j]) < 1e-8


@pytest.mark.parametrize("name", sorted(ALIASED))
def test_writing_through_views_is_refused_by_the_subclass_and_followed_by_the_graph(name):
    model, data, options = ARCHITECTURES[name]()
    case = problem(model, data, count=1, **options)
    with pytest.raises(AliasedWriteError, match="writes"):
        case.lanes((1e-2,), propagate=case.dispatched.lanes)
    assert relative(case.lanes((1e-2,))[1][:, 0], case.points(1e-2)[1]) < 1e-6


def test_writing_in_place_without_views_is_followed_by_both():
    model, data, _ = ARCHITECTURES["in_place"]()
    case = problem(model, data)
    assert relative(case.lanes((1e-2,), propagate=case.dispatched.lanes)[1][:, 0], case.points(1e-2)[1]) < 1e-7


@pytest.mark.parametrize("front", ["graph", "subclass"])
@pytest.mark.parametrize("pieces", [F.cross_entropy, lambda o, t: F.nll_loss(F.log_softmax(o, -1), t)], ids=["whole", "pair"])
def test_small_losses_keep_their_digits_in_float32(front, pieces):
    """At a loss of 1e-9 the logarithm of the softmax is rounded to nothing in float32; its lanes are not."""
    torch.manual_seed(0)
    model = nn.Sequential(lin(), nn.Tanh(), lin(8, 3))
    case = problem(model, vectors(), criterion=lambda o, t: pieces(o + 20 * F.one_hot(t, 3), t))
    assert 0 < case.propagation.loss() < 1e-7
    propagate = case.dispatched.lanes if front == "subclass" else None
    first, second, _ = case.lanes((0.0, 1e-6))
    narrow_first, narrow_second, _ = case.lanes((0.0, 1e-6), torch.float32, propagate=propagate)
    assert relative(narrow_first, first) < 1e-5
    assert relative(narrow_second, second) < 1e-5


@pytest.mark.parametrize("front", ["graph", "subclass"])
def test_a_frozen_decision_is_counted(front):
    def forward(s, x):
        return s.o(s.l(x) * float(s.l.weight.abs().max()))

    case = problem(Forward(forward, l=lin(), o=lin(8, 3)), vectors())
    frame = case.lanes((1e-2,), propagate=case.dispatched.lanes if front == "subclass" else None)[2]
    assert sum(frame.frozen.values()) == 1


def test_the_subclass_follows_shapes_that_depend_on_the_parameters():
    """Where the trace refuses; the shape is that at w."""

    def forward(s, x):
        z = s.l(x)
        rows = torch.nonzero(z.sum(-1) > -100)[:, 0]
        return s.o(z.new_zeros(z.shape).index_add(0, rows, z[rows].tanh()))

    torch.manual_seed(0)
    model = Forward(forward, l=lin(), o=lin(8, 3))
    with pytest.raises(UntraceableError, match="nonzero"):
        problem(model, vectors())
    case = problem(Forward(lambda s, x: s.o(s.l(x).tanh()), l=model.l, o=model.o), data := vectors())
    first, second, _ = case.lanes((1e-2,))
    other = problem(
        model.train(False),
        data,
        trace_it=False,
        directions={n: case.directions[f"parameter:model.{n}"] for n in case.objective.names},
    )
    other_first, other_second, _ = other.lanes((1e-2,), propagate=other.dispatched.lanes)
    torch.testing.assert_close(other_second, second, rtol=1e-9, atol=0)
    torch.testing.assert_close(other_first, first, rtol=1e-9, atol=0)


def test_transforms_within_the_forward_are_refused():
    case = problem(Forward(lambda s, x: s.o(s.l(x)), l=lin(), o=lin(8, 3)), vectors())
    case.replica.module.model.function = lambda s, x: torch.func.vmap(lambda z: s.o(s.l(z)))(x)
    with pytest.raises(UntraceableError, match=r"torch\.func"):
        case.lanes((1e-2,), propagate=case.dispatched.lanes)
