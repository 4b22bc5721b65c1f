"""Embeddings whose gradients are stored sparsely: the same numbers as with dense ones."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.probes.temperature.sample_gradients import SampleGradients


class Embedded(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.items, self.head = nn.Embedding(7, 3, sparse=sparse), nn.Linear(3, 3)

    def forward(self, tokens):
        return self.head(torch.tanh(self.items(tokens).mean(1)))


class Bagged(Embedded):
    def __init__(self, sparse):
        super().__init__(sparse)
        self.items = nn.EmbeddingBag(7, 3, sparse=sparse, mode="sum")

    def forward(self, tokens):
        return self.head(torch.tanh(self.items(tokens)))


class ByFunction(Embedded):
    """Asks for it where it is called."""

    def __init__(self, sparse):
        super().__init__(False)
        self.sparse = sparse

    def forward(self, tokens):
        return self.head(torch.tanh(F.embedding(tokens, self.items.weight, sparse=self.sparse).mean(1)))


TOKENS = torch.tensor([[0, 3, 3], [1, 0, 5], [2, 2, 2], [5, 1, 0]])


def pair(kind):
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        data = [(TOKENS, torch.tensor([0, 2, 1, 1])), (TOKENS.flip(0), torch.tensor([1, 0, 2, 1]))]
        found.append(fs.Objective(kind(sparse).double(), data, criterion=F.cross_entropy))
    return found


@pytest.mark.parametrize("kind", [Embedded, ByFunction])
def test_derivatives_are_those_of_dense_gradients(kind, untouched):
    sparse, dense = pair(kind)
    with untouched(sparse.model):
        for found, expected in zip(sparse.gradient().values(), dense.gradient().values(), strict=True):
            assert found.layout == torch.strided
            torch.testing.assert_close(found, expected)
        block = torch.eye(dense.size, dtype=torch.float64)[:, :4]
        torch.testing.assert_close(fs.hessian(sparse) @ block, fs.hessian(dense) @ block, rtol=1e-5, atol=1e-7)
        rows = []
        for objective in (sparse, dense):
            with SampleGradients(objective) as samples:
                rows.append(samples.rows([0, 1]))
        torch.testing.assert_close(*rows)


@pytest.mark.parametrize("kind", [Embedded, ByFunction])
def test_gauss_newton_and_spectrum(kind):
    sparse, dense = pair(kind)
    vector = torch.ones(dense.size, dtype=torch.float64)
    torch.testing.assert_close(fs.ggn(sparse) @ vector, fs.ggn(dense) @ vector)
    values = [fs.spectrum(o, k=2, nodes=10).eigenvalues for o in (sparse, dense)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6, atol=1e-8)


def test_gradients_of_a_bag_and_their_differences(untouched):
    sparse, dense = pair(Bagged)
    vector = torch.ones(dense.size, dtype=torch.float64)
    with untouched(sparse.model):
        for found, expected in zip(sparse.gradient().values(), dense.gradient().values(), strict=True):
            torch.testing.assert_close(found, expected)
        products = [fs.hessian(o, method="gradient difference") @ vector for o in (sparse, dense)]
    torch.testing.assert_close(*products, rtol=1e-6, atol=1e-8)


def test_a_bag_without_second_derivative_names_what_is_to_be_had():
    sparse, _ = pair(Bagged)
    with pytest.raises(fs.NoPathError, match="Gauss-Newton matrix.*_embedding_bag.*no second derivative.*use fs.hessian"):
        fs.ggn(sparse) @ torch.ones(sparse.size, dtype=torch.float64)
