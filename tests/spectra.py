"""Results of spectral probes made from dense matrices by the definitions, for figures, tables and files."""

import math

import numpy as np
import scipy
from scipy import stats

import fastscape as fs
from fastscape.numerics.spectra import Density, Stability
from fastscape.probes.spectrum.result import SpectrumResult, SpectrumTrajectory


def estimate(samples):
    """Mean with its Student interval; NaN bounds for one sample."""
    samples = np.asarray(samples, dtype=np.float64)
    value, n = float(samples.mean()), len(samples)
    if n < 2:
        return fs.Estimate(value, math.nan, (math.nan, math.nan), n)
    stderr = float(samples.std(ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * stderr
    return fs.Estimate(value, stderr, (value - half, value + half), n)


def quadrature(matrix, start, steps):
    """Nodes and weights of Lanczos with full reorthogonalisation from one vector."""
    basis, alpha, beta = [start / np.linalg.norm(start)], [], []
    for _ in range(steps):
        w = matrix @ basis[-1]
        alpha.append(float(basis[-1] @ w))
        for _ in range(2):
            for q in basis:
                w = w - (q @ w) * q
        beta.append(float(np.linalg.norm(w)))
        basis.append(w / beta[-1])
    nodes, vectors = scipy.linalg.eigh_tridiagonal(np.array(alpha), np.array(beta[:-1]))
    return nodes, vectors[0] ** 2


def density_of(matrix, probes, steps, width=None):
    pairs = [quadrature(matrix, probe, steps) for probe in probes.T]
    nodes, weights = np.array([n for n, _ in pairs]), np.array([w for _, w in pairs])
    low, high = nodes.min(), nodes.max()
    width = width or 0.008 * (high - low)
    grid = np.linspace(low - 5 * width, high + 5 * width, 400)
    curves = (weights[:, :, None] * stats.norm.pdf(grid, nodes[:, :, None], width)).sum(axis=1)
    half = (
        stats.t.ppf(0.975, len(curves) - 1) * curves.std(axis=0, ddof=1) / math.sqrt(len(curves)) if len(curves) > 1 else np.nan
    )
    value = curves.mean(axis=0)
    negative = estimate((weights * (nodes < 0)).sum(axis=1))
    outliers = int((np.abs(nodes[0]) > 0.2 * np.abs(nodes[0]).max()).sum())
    band = np.broadcast_to(half, value.shape)
    return Density(nodes, weights, grid, value, np.maximum(value - band, 0), value + band, float(width), negative, outliers)


def spectrum_of(matrix, *, k=5, probes=6, steps=40, layers=None, seed=0, stability=None, **fields):
    """The result of a probe of a symmetric matrix; ``layers`` are names and row slices; ``fields`` replace what is computed."""
    size = len(matrix)
    values = np.linalg.eigvalsh(matrix)
    scale = np.abs(values).max()
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (size, probes))
    products = matrix @ signs
    forms = (signs * products).sum(axis=0)
    square = (products**2).sum(axis=0)
    residuals = scale * 10.0 ** np.linspace(-5, -2.5, k)
    rank = forms.mean() ** 2 / square.mean()
    content = {
        "name": "model",
        "step": None,
        "loss": 0.31,
        "accuracy": 0.91,
        "size": size,
        "operator": "hessian",
        "eigenvalues": values[::-1][:k].copy(),
        "residuals": residuals,
        "converged": residuals <= 1e-3 * scale,
        "smallest": values[:k].copy(),
        "smallest_residuals": residuals * 0.5,
        "smallest_converged": residuals * 0.5 <= 1e-3 * scale,
        "trace": estimate(forms),
        "trace_data_stderr": float(0.02 * abs(forms.mean())),
        "trace_square": estimate(square),
        "effective_rank": fs.Estimate(rank, 0.1 * rank, (0.8 * rank, 1.2 * rank), probes),
        "mean_curvature": estimate(forms / size),
        "directional_variance": estimate((forms - forms.mean()) ** 2),
        "layer_traces": {
            name: estimate((signs[rows] * products[rows]).sum(axis=0)) for name, rows in (layers or {"w": slice(0, size)}).items()
        },
        "density": density_of(matrix, signs, min(steps, size - 1)) if steps else None,
        "gradient_norm": 0.21,
        "gradient_curvature": float(values[-2]),
        "stability": stability,
        "products": 240,
        "meta": META,
        "notes": (),
    }
    return SpectrumResult(**content | fields)


META = {
    "seed": 0,
    "settings": {"k": 5, "nodes": 40, "block": 6, "operator": "hessian", "path": None, "memory": None},
    "targets": {"trace": 0.05, "eigenvalues": 1e-3},
    "versions": {"fastscape": "0.1.0", "torch": "2.14.1"},
    "device": "cpu",
    "dtype": "torch.float32",
    "weight_fingerprint": "0123abcd",
    "data_fingerprint": "4567cdef",
    "path": "cached graph",
    "chunk": 6,
    "refused": {"linearised replay": "set-up costs more than it saves", "forward over reverse": "2.1 gradients"},
    "gradients_per_product": 1.62,
    "seconds": 4.2,
    "budget": 20.0,
    "stop_reason": "target met",
    "orthogonality_loss": 3e-15,
    "nan_products": 0,
    "asymmetry": 2e-8,
}


def planted(size=120, seed=0, scale=1.0):
    """A matrix with five outliers, a bulk at zero and a few negative eigenvalues."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([[9.0, 6.5, 4.0, 3.1, 2.4], 0.15 * rng.exponential(size=size - 25), -0.3 * rng.exponential(size=20)])
    vectors = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return scale * (vectors * values) @ vectors.T


def sgd(sharpness, learning_rate=0.2, preconditioned=None, batch=None):
    """Stability of gradient descent, or of Adam where there is a preconditioned sharpness."""
    critical = (2 if preconditioned is None else 38) / learning_rate
    value = sharpness if preconditioned is None else preconditioned
    name = "SGD" if preconditioned is None else "Adam"
    ratio, edge = value / critical, learning_rate * sharpness
    return Stability(name, learning_rate, critical, sharpness, preconditioned, ratio, edge, 1e-4 * value, batch, ())


def trajectory_of(scales=(0.3, 0.6, 0.9, 1.1, 1.05), *, stable=True, **fields):
    """Checkpoints whose spectra grow."""
    points = []
    for index, scale in enumerate(scales):
        matrix = planted(seed=index, scale=scale)
        sharp = float(np.linalg.eigvalsh(matrix)[-1])
        step = 50 * index
        points.append(spectrum_of(matrix, name=f"step{step}", step=step, stability=sgd(sharp) if stable else None, **fields))
    return SpectrumTrajectory(tuple(points), {"stop_reason": "target met", "seconds": 21.0, "budget": 60.0})
