"""Figures of spectra (matplotlib). Each takes a result and an ``ax``, and returns the ``ax``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastscape.numerics.arrays import Array
from fastscape.probes.spectrum.words import layer_order
from fastscape.reports.axes import BLUE, GREY, ORANGE, RED, grid, nothing, single, step_axis, titled
from fastscape.reports.bars import bars
from fastscape.reports.numbers import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastscape.probes.spectrum.result import SpectrumResult, SpectrumTrajectory

_LAMBDA = {"hessian": r"eigenvalue $\lambda$ of the Hessian", "ggn": r"eigenvalue $\lambda$ of the GGN"}


def density(result: SpectrumResult, ax: Axes | None = None) -> Axes:
    """Smoothed spectral density with its band, nodes as a rug, Ritz values with residuals at the height of one eigenvalue."""
    ax = single(ax)
    title = "Spectral density, 95 % band over probes"
    found = result.density
    if found is None or not np.isfinite(found.values).any():
        return nothing(ax, title, "too few products for a density" if found is None else "the density is not finite")
    if not np.isfinite(found.low).all():
        title = "Spectral density, no band: fewer than 20 nodes"
    one = 1 / (result.size * found.width * math.sqrt(2 * math.pi))  # peak of a single eigenvalue
    floor, top = 0.1 * one, 4 * float(np.nanmax(found.values))
    x, shown = found.grid, np.maximum(found.values, floor)
    if np.isfinite(found.low).all():
        ax.fill_between(x, np.clip(found.low, floor, None), np.clip(found.high, floor, None), color=BLUE, alpha=0.2, lw=0)
    mass = found.negative_mass.value
    if mass > 0:
        words = f"{100 * mass:.{1 if mass >= 5e-4 else 3}f} % below zero"
        ax.fill_between(x, floor, shown, where=x <= 0, color=ORANGE, alpha=0.3, lw=0, label=words)
    ax.plot(x, shown, color=BLUE, lw=1.3)
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    carrying = found.weights > 1e-9  # a node without weight is nowhere in the curve
    nodes = found.nodes[carrying & np.isfinite(found.nodes)]
    ax.plot(nodes, np.full(len(nodes), 0.018), "|", color="k", ms=6, mew=0.6, alpha=0.5, transform=ax.get_xaxis_transform())
    for values, residuals, converged in _ends(result):
        _ritz(ax, values, np.full(len(values), one), residuals, converged, along="x")
    ax.set(yscale="log", ylim=(floor, top), xlim=(x[0], x[-1]))
    ax.plot([], [], "o", color=RED, ms=4, label="eigenvalue ± residual")
    ax.plot([], [], "|", color="k", ms=6, alpha=0.6, label="nodes of the quadrature")
    ax.legend(fontsize=7, loc="upper right")
    return titled(ax, title, _LAMBDA[result.operator], "share of eigenvalues per unit")


def _ends(result: SpectrumResult) -> tuple[tuple[Array, Array, NDArray[np.bool_]], ...]:
    return (
        (result.eigenvalues, result.residuals, result.converged),
        (result.smallest, result.smallest_residuals, result.smallest_converged),
    )


def _ritz(ax: Axes, x: Array, y: Array, residuals: Array, converged: NDArray[np.bool_], *, along: str) -> None:
    """Ritz values with residual bars; hollow where they have not converged."""
    for mask, face in ((converged, RED), (~converged, "white")):
        bars: dict[str, Any] = {f"{along}err": residuals[mask]}
        ax.errorbar(
            x[mask], y[mask], **bars, fmt="o", color=RED, mfc=face, mec=RED, ms=4, elinewidth=1.0, capsize=2, lw=0, zorder=5
        )


def eigenvalues(result: SpectrumResult, ax: Axes | None = None) -> Axes:
    """Both ends of the spectrum as stems with residual bars; hollow where they have not converged."""
    ax = single(ax)
    title = "Largest and smallest eigenvalues ± residual"
    top, bottom = len(result.eigenvalues), len(result.smallest)
    if not top and not bottom:
        return nothing(ax, title, "no eigenvalue was found")
    gap = 2 if top and bottom else 0
    places = (np.arange(top, dtype=np.float64), top - 1 + gap + np.arange(bottom, 0, -1, dtype=np.float64) - gap * 0.5)
    for x, (values, residuals, converged) in zip(places, _ends(result), strict=True):
        ax.vlines(x, 0, values, color=BLUE, lw=2.2, alpha=0.45)
        _ritz(ax, x, values, residuals, converged, along="y")
        crowded = len(values) > 6 or values is result.smallest  # those of the bulk's edge are too near to each other
        for index in range(min(1, len(values)) if crowded else len(values)):
            _stem_label(ax, float(x[index]), float(values[index]), float(residuals[index]))
    ax.axhline(0, color=GREY, lw=0.8)
    if top and bottom:
        between = result.size - top - bottom
        middle = top - 0.5 + gap * 0.25
        ax.text(middle, 0, "…", ha="center", va="bottom", fontsize=11, color=GREY)
        if between > 0:
            ax.annotate(
                f"{between:,}\nmore",
                (middle, 0),
                (0, -4),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=7,
                color=GREY,
            )
    size = result.size
    names = [f"{i + 1}" for i in range(top)], [f"{size - i}" for i in range(bottom)]
    ax.set_xticks(np.concatenate(places), [*_sparse(names[0]), *_sparse(names[1])], fontsize=7)
    ax.set_xlim(-0.7, float(np.concatenate(places).max()) + 0.7)
    ax.margins(y=0.14)
    return titled(ax, title, "rank, the largest first", r"$\lambda$ (loss per squared parameter)")


def _stem_label(ax: Axes, x: float, value: float, residual: float) -> None:
    up = value >= 0
    ax.annotate(
        number(value),
        (x, value + residual if up else value - residual),
        xytext=(0, 5 if up else -5),
        textcoords="offset points",
        ha="center",
        va="bottom" if up else "top",
        fontsize=7,
    )


def _sparse(names: list[str]) -> list[str]:
    """At most some eight names, the first among them."""
    step = max(1, math.ceil(len(names) / 8)) if not names or len(names[-1]) < 5 else max(1, math.ceil(len(names) / 2))
    return [name if index % step == 0 else "" for index, name in enumerate(names)]


def layer_traces(result: SpectrumResult, ax: Axes | None = None) -> Axes:
    """Trace of each parameter's diagonal block as bars with 95 % intervals, the largest first."""
    ax = single(ax)
    title = "Trace by parameter, 95 % intervals"
    ordered = [(name, trace) for name, trace in layer_order(result) if math.isfinite(trace.value)]
    if not ordered:
        return nothing(ax, title, "no finite trace")
    bars(ax, ordered)
    return titled(ax, title, r"tr $H_{\ell\ell}$ (loss per squared parameter)", "")


CAPTIONS: dict[str, str] = {
    "density": (
        "Density of eigenvalues by stochastic Lanczos quadrature, smoothed over its nodes (ticks), with the 95 % band over "
        "probes from 20 nodes on; eigenvalues that were found, with their residuals, at the height of one."
    ),
    "eigenvalues": "Ritz values of both ends, theta ± ||Hv - theta v||; hollow where they have not converged.",
    "layer_traces": "Traces of the diagonal blocks of H by parameter, with 95 % intervals over probes.",
    "sharpness": "Largest and smallest eigenvalue, ± residual; dashed: critical value of optimizers that have one of lambda_max.",
    "stability_ratio": "Sharpness as the optimizer sees it over the one at which its step stops contracting; 1 is the edge.",
    "trace": "Sum of the eigenvalues, 95 % interval over probes.",
    "effective_rank": "(tr H)^2 / tr(H^2), the number of equal eigenvalues with the same trace and square, 95 % interval.",
}
CHECKPOINT_FIGURES: tuple[Callable[[SpectrumResult, Axes | None], Axes], ...] = (density, eigenvalues, layer_traces)


# ---------------------------------------------------------------------- along training


def _line(result: SpectrumTrajectory, ax: Axes, name: str, colour: str, label: str = "", style: str = "o-") -> Array:
    """A series over the steps with its bounds as a band; the label at its last point."""
    value, low, high = result.series(name)
    order = np.argsort(result.steps, kind="stable")
    x, value, low, high = result.steps[order], value[order], low[order], high[order]
    if np.isfinite(low).any():
        ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    ax.plot(x, value, style, color=colour, ms=4, lw=1.4)
    known = np.flatnonzero(np.isfinite(value))
    if label and len(known):
        _at(ax, float(x[known[-1]]), float(value[known[-1]]), label, colour, 4 if colour == BLUE else -4)
    return value


def _at(ax: Axes, x: float, y: float, text: str, colour: str, rise: float) -> None:
    """A word at the right of the last point, ``rise`` points above it so that two near to each other can be read."""
    place: dict[str, Any] = {"xytext": (7, rise), "textcoords": "offset points"}
    ax.annotate(text, (x, y), **place, va="center", fontsize=8, color=colour, annotation_clip=False)


def sharpness(result: SpectrumTrajectory, ax: Axes | None = None) -> Axes:
    """lambda_max and lambda_min along training, with the optimizer's critical value where it is one of lambda_max."""
    ax = single(ax)
    _line(result, ax, "lambda_max", BLUE, r"$\lambda_{\max}$")
    _line(result, ax, "lambda_min", ORANGE, r"$\lambda_{\min}$")
    critical = result.series("critical")[0]
    raw = np.isfinite(result.series("stability_ratio")[0]) & ~np.isfinite(result.series("preconditioned")[0])
    if raw.any():
        order = np.argsort(result.steps, kind="stable")
        edge = np.where(raw, critical, np.nan)[order]
        ax.plot(result.steps[order], edge, "--", color=RED, lw=1.2)
        first = int(np.flatnonzero(np.isfinite(edge))[0])
        ax.annotate(
            "edge of stability",
            (float(result.steps[order][first]), float(edge[first])),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
            color=RED,
        )
    ax.axhline(0, color=GREY, lw=0.8)
    ax.margins(y=0.12)
    step_axis(result.points, result.steps, ax)
    return titled(ax, "Sharpness", None, r"$\lambda$ (loss per squared parameter)")


def stability_ratio(result: SpectrumTrajectory, ax: Axes | None = None) -> Axes:
    """Sharpness over the optimizer's critical value: 1 is the edge. Without an optimizer, -lambda_min / lambda_max."""
    ax = single(ax)
    if np.isfinite(result.series("stability_ratio")[0]).any():
        ratio = _line(result, ax, "stability_ratio", BLUE)
        ax.axhline(1, color=RED, ls="--", lw=1.2)
        ax.annotate(
            "edge",
            (0.01, 1),
            xytext=(0, 3),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color=RED,
        )
        known = np.append(ratio[np.isfinite(ratio)], 1.0)
        if known.min() > 0 and known.max() > 30 * known.min():  # the first steps of Adam are hundreds of times beyond the edge
            ax.set_yscale("log")
            ax.margins(y=0.12)
        else:
            ax.set_ylim(min(0.0, 1.15 * float(known.min())), 1.15 * max(1.1, float(known.max())))
        words = ("Stability ratio", r"sharpness / critical value")
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = -result.series("lambda_min")[0] / result.series("lambda_max")[0]
        order = np.argsort(result.steps, kind="stable")
        ax.plot(result.steps[order], ratio[order], "o-", color=BLUE, ms=4, lw=1.4)
        ax.set_ylim(bottom=min(0.0, float(np.min(ratio[np.isfinite(ratio)], initial=0.0))))
        words = ("Negative end relative to the positive", r"$-\lambda_{\min}/\lambda_{\max}$")
    step_axis(result.points, result.steps, ax)
    return titled(ax, words[0], None, words[1])


def trace(result: SpectrumTrajectory, ax: Axes | None = None) -> Axes:
    """Trace along training with its 95 % interval."""
    ax = single(ax)
    _line(result, ax, "trace", BLUE)
    ax.axhline(0, color=GREY, lw=0.8)
    step_axis(result.points, result.steps, ax)
    return titled(ax, "Trace, 95 % interval", None, r"tr $H$")


def effective_rank(result: SpectrumTrajectory, ax: Axes | None = None) -> Axes:
    """Effective rank along training with its 95 % interval."""
    ax = single(ax)
    _line(result, ax, "effective_rank", BLUE)
    ax.set_ylim(bottom=0)
    step_axis(result.points, result.steps, ax)
    return titled(ax, "Effective rank, 95 % interval", None, r"(tr $H)^2$ / tr $H^2$")


TRAJECTORY_FIGURES: tuple[Callable[[SpectrumTrajectory, Axes | None], Axes], ...] = (
    sharpness,
    stability_ratio,
    trace,
    effective_rank,
)


def trajectory_panels(result: SpectrumTrajectory, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Four panels along training: sharpness with its edge, stability ratio, trace, effective rank."""
    axes = grid(2, 2, (9, 7)) if axes is None else axes
    if len(axes) != len(TRAJECTORY_FIGURES):
        raise ValueError(f"axes must be four, got {len(axes)}")
    for draw, ax in zip(TRAJECTORY_FIGURES, axes, strict=True):
        draw(result, ax)
    return axes
