"""Models that several test files build on."""

from torch import nn


class FlatLinear(nn.Module):
    """One layer on flattened digits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(1))
