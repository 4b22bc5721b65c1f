"""Heads on recurrent networks by both front ends: outputs of the layers are turned in place, which only moves their shape."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import fastscape as fs

LENGTHS = torch.tensor([5, 5, 4, 2])


class Head(nn.Module):
    """A recurrent layer and what stands behind it."""

    def __init__(self, kind, head, **options):
        super().__init__()
        self.recurrent = getattr(nn, kind)(4, 3, batch_first=True, **options)
        self.out, self.head = nn.Linear(3, 3), head

    def forward(self, x):
        if self.head == "packed":
            hidden = self.recurrent(pack_padded_sequence(x, LENGTHS, batch_first=True))[1]
            return self.out((hidden[0] if isinstance(hidden, tuple) else hidden)[-1])
        outputs, hidden = self.recurrent(x)
        if self.head == "every step":
            return F.log_softmax(self.out(outputs), -1).mean(1)
        if self.head == "hidden":
            return self.out((hidden[0] if isinstance(hidden, tuple) else hidden)[-1])
        return self.out(outputs.transpose(0, 1)).mean(0)


class Turned(nn.Module):
    """The user's own changes of shape in place."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.out, self.change = nn.Linear(4, 5), nn.Linear(5, 3), change

    def forward(self, x):
        hidden = torch.tanh(self.layer(x))  # [4, 5, 5]
        if self.change == "transpose_":
            return self.out(hidden.transpose_(0, 1)).mean(0)
        if self.change == "unsqueeze_":
            return self.out(hidden.unsqueeze_(1)).mean((1, 2))
        if self.change == "squeeze_":
            return self.out(hidden[:, None].squeeze_(1)).mean(1)
        return self.out(hidden.sum(1).t_().t()) + 0 * hidden.sum()


def objective_of(make):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, 5, 4, generator=generator), torch.tensor([0, 2, 1, 1]))]
    return fs.Objective(make(), data, criterion=F.cross_entropy)


def agrees(objective, front_end):
    directions = fs.Directions(objective, count=2)
    found = fs.responses(objective, directions, [1e-3, 1e-1], precision="difference", method=front_end)
    exact = fs.responses(objective, directions, [1e-3, 1e-1], precision="float64")
    assert found.path.name == front_end
    np.testing.assert_allclose(found.even, exact.even, rtol=1e-3, atol=4 * exact.noise.max())
    np.testing.assert_allclose(found.odd, exact.odd, rtol=1e-4)


@pytest.mark.parametrize("front_end", ["graph", "dispatch"])
@pytest.mark.parametrize("head", ["every step", "turned", "hidden", "packed"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_heads(kind, head, front_end):
    agrees(objective_of(lambda: Head(kind, head)), front_end)


@pytest.mark.parametrize("front_end", ["graph", "dispatch"])
@pytest.mark.parametrize("change", ["transpose_", "unsqueeze_", "squeeze_", "t_"])
def test_shapes_changed_in_place(change, front_end):
    agrees(objective_of(lambda: Turned(change)), front_end)


def test_alignment_losses_over_recurrent_layers_by_whichever_follows():
    """Connectionist temporal classification fills a tensor outside of any trace, so that only dispatch follows it."""
    lengths, targets = torch.full((4,), 5), torch.tensor([[1, 2], [2, 1], [1, 1], [2, 2]])

    class Labels(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.out = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x):
            return F.log_softmax(self.out(self.recurrent(x)[0]), -1)

    def loss(model, batch):
        return F.ctc_loss(model(batch[0]).transpose(0, 1), targets, lengths, torch.full((4,), 2))

    torch.manual_seed(0)
    data = [(torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(1)),)]
    objective = fs.Objective(Labels(), data, loss=loss)
    agrees(objective, "dispatch")
    found = fs.responses(objective, fs.Directions(objective, count=2), [1e-2, 1e-1])
    assert found.trusted.all()
    with pytest.raises(ValueError, match="method must be 'loop' for this model, got 'vmap'.*use method='loop'"):
        fs.slice1d(objective, count=2, points=5, method="vmap")
    assert fs.slice1d(objective, count=2, points=5).losses.shape == (2, 5)
