"""Models on which everything that a budget counts takes simulated seconds."""

from conftest import CLOCK
from torch import nn


class Timed(nn.Module):
    """A model whose every forward takes ``seconds`` of the simulated clock, a batched one of many points as well.

    Attributes:
        forwards: of it and its copies so far.
    """

    forwards = 0

    def __init__(self, model, seconds=1.0):
        super().__init__()
        self.model, self.seconds = model, seconds

    def forward(self, *inputs):
        CLOCK.now += self.seconds
        Timed.forwards += 1
        return self.model(*inputs)
