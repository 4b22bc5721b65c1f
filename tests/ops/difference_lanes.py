"""What the tests of difference ops on rows and planes share."""

import pytest
import torch

NAN, INF = float("nan"), float("inf")
DTYPES = {"32": (torch.float32, torch.float32), "64/32": (torch.float64, torch.float32), "64": (torch.float64, torch.float64)}
BOTH = pytest.mark.parametrize("name", ["op", "reference"])
PAIRS = pytest.mark.parametrize("pair", DTYPES)
HALVES = ([2, 2], [2, 2], [0, 0], [1, 1])


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def radii(*values):
    return torch.tensor(values, dtype=torch.float64)
