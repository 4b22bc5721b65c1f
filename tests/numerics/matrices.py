"""Symmetric matrices with prescribed eigenvalues."""

import numpy as np
import torch


def planted(values, seed=0, dtype=torch.float64):
    """Q diag(values) Q' for a random orthogonal Q."""
    orthogonal, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    matrix = (orthogonal * np.asarray(values, dtype=np.float64)) @ orthogonal.T
    return torch.from_numpy((matrix + matrix.T) / 2).to(dtype)


def outlier_spectrum(size, seed=0):
    """A bulk near zero and five outliers, as Hessians of trained networks have."""
    bulk = 0.3 * np.random.default_rng(seed).standard_normal(size - 5) ** 3
    return np.sort(np.concatenate([bulk, [40.0, 25.0, 14.0, 9.0, 6.0]]))
