"""Polynomial losses of free tensors, and the maximum of a quadratic over a ball."""

import numpy as np
import torch
from scipy.optimize import brentq
from torch import nn

import fastscape as fs

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


class Weights(nn.Module):
    """A model that is nothing but its tensors."""

    def __init__(self, *tensors):
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(tensor.clone()) for tensor in tensors])

    def forward(self):
        return torch.cat([part.reshape(-1) for part in self.parts])


def polynomial(tensors, gradient, matrix, constant=0.0):
    """constant + g'(w - w0) + (w - w0)'M(w - w0) / 2."""
    start = torch.cat([tensor.reshape(-1) for tensor in tensors])

    def loss(model, _batch):
        step = model() - start
        return constant + gradient @ step + step @ matrix @ step / 2

    return fs.Objective(Weights(*tensors), [torch.zeros(1)], loss=loss)


def symmetric(size):
    matrix = normal(size, size)
    return (matrix + matrix.T) / 2


def ball_maximum(linear, matrix):
    """max of linear'u + u'Au / 2 over the unit ball, from the secular equation of the boundary."""
    values, vectors = np.linalg.eigh(matrix)
    parts = vectors.T @ linear
    top = max(values[-1], 0.0)

    def excess(shift):
        return np.sum((parts / (shift - values)) ** 2) - 1

    shift = brentq(excess, top + 1e-13, top + np.linalg.norm(parts) + 1, xtol=1e-15)
    point = parts / (shift - values)
    return parts @ point + point @ (values * point) / 2
