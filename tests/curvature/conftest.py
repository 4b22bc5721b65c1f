"""A small smooth network in float64 and its data."""

import pytest
import torch
from torch import nn


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


@pytest.fixture
def pairs():
    """Ten inputs and their classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 5, generator=generator, dtype=torch.float64), torch.randint(3, (10,), generator=generator)
