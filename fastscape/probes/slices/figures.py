"""Figures of slices (matplotlib). Each takes a result and an ``ax``, and returns the ``ax``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.reports.axes import BLUE, GREY, ORANGE, RED, literal, nothing, single
from fastscape.reports.numbers import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastscape.probes.slices.result import PlaneResult, SliceResult

_WIDE = 50.0  # ratio of the loss's range to its value at w from which a linear axis hides the neighbourhood of w
_LEVELS = 24
_FEW = 12  # lines that labels can name
_TITLES = ("Losses along lines, 95 % bands over samples", "Losses over a plane")


def lines(result: SliceResult, ax: Axes | None = None) -> Axes:
    """Loss along every direction with its band, and their mean where there are several."""
    ax = single(ax)
    if not np.isfinite(result.losses).any():
        return nothing(ax, _TITLES[0], "no loss is finite")
    several = len(result.losses) > 1
    for index, (losses, stderr) in enumerate(zip(result.losses, result.stderr, strict=True)):
        shown, half = np.where(np.isfinite(losses), losses, np.nan), 1.96 * stderr
        colour = f"C{index % 10}" if several else BLUE
        if np.isfinite(half).any():
            ax.fill_between(result.alphas, shown - half, shown + half, color=colour, alpha=0.15, lw=0)
        label = literal(result.labels[index]) if len(result.losses) <= _FEW else None
        ax.plot(result.alphas, shown, color=colour, lw=1.0 if several else 1.4, label=label)
    with np.errstate(invalid="ignore"):
        mean = np.mean(np.where(np.isfinite(result.losses), result.losses, np.nan), axis=0)
    if several:
        ax.plot(result.alphas, mean, color="k", lw=1.8, label="mean over directions")
    ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    if _symlog(result):
        ax.set_yscale("symlog", linthresh=_threshold(result))
        ax.set_ylim(bottom=min(0.0, 2 * float(np.min(result.losses[np.isfinite(result.losses)]))))  # bands reach far below 0
    if several or result.labels[0]:
        ax.legend(fontsize=6, loc="best")
    ax.set(xlabel=_unit(r"$\alpha$", result.eps_relative), ylabel="loss")
    ax.set_title(_TITLES[0], fontsize=10)
    return ax


def contour(result: PlaneResult, ax: Axes | None = None) -> Axes:
    """Filled contours of the loss, w as a cross, checkpoints as a line."""
    ax = single(ax)
    rows, losses = _shown(result)
    if len(rows) < 2 or not np.isfinite(losses).any():
        return nothing(ax, _TITLES[1], "too few rows were evaluated" if len(rows) < 2 else "no loss is finite")
    options, bar = _scaled(result, losses)
    # contourf takes z as [y, x]: alpha_1 on the x axis is the first dimension of the losses
    drawn = ax.contourf(rows, result.alpha_2, np.ma.masked_invalid(losses.T), cmap="viridis", **options)
    colours = ax.figure.colorbar(drawn, ax=ax)
    colours.set_label("loss", fontsize=8)
    if bar is not None:
        colours.set_ticks(bar.tolist(), labels=[number(value, 2) for value in bar])
    colours.ax.tick_params(labelsize=7)
    ax.plot(0, 0, "+", color=RED, ms=9, mew=1.8, label="w", zorder=5)
    if result.trajectory is not None:
        ax.plot(result.trajectory[:, 0], result.trajectory[:, 1], ".-", color=ORANGE, lw=1.2, ms=5, label="checkpoints")
        ax.legend(fontsize=7, loc="upper right")
    names = [_unit(name, result.eps_relative[index : index + 1]) for index, name in enumerate((r"$\alpha_1$", r"$\alpha_2$"))]
    first, second = map(literal, result.labels)
    ax.set(xlabel=f"{names[0]}: {first}", ylabel=f"{names[1]}: {second}")
    ax.set_title(_TITLES[1], fontsize=10)
    return ax


def surface(result: PlaneResult, ax: Any = None) -> Any:
    """The loss as a surface, on 3D axes."""
    if ax is None:
        flat = single(None)
        spec = flat.get_subplotspec()
        figure = flat.figure
        flat.remove()
        ax = figure.add_subplot(spec, projection="3d")
    rows, losses = _shown(result)
    if len(rows) < 2 or not np.isfinite(losses).any():
        ax.set_title(_TITLES[1], fontsize=10)
        words = "too few rows were evaluated" if len(rows) < 2 else "no loss is finite"
        ax.text2D(0.5, 0.5, words, ha="center", transform=ax.transAxes, color=GREY, fontsize=8)
        return ax
    symlog = _symlog(result)
    threshold = _threshold(result)
    height = np.sign(losses) * np.log10(1 + np.abs(losses) / threshold) if symlog else losses
    height = np.where(np.isfinite(height), height, np.nan)
    x, y = np.meshgrid(rows, result.alpha_2, indexing="ij")
    low, high = float(np.nanmin(height)), float(np.nanmax(height))
    ax.plot_surface(x, y, height, cmap="viridis", rstride=1, cstride=1, lw=0.1, antialiased=True, vmin=low, vmax=high)
    if symlog:
        ticks = np.linspace(low, high, 5)
        values = np.sign(ticks) * threshold * (10 ** np.abs(ticks) - 1)
        ax.set_zticks(ticks, [number(value, 2) for value in values])
    ax.set(xlabel=r"$\alpha_1$", ylabel=r"$\alpha_2$", zlabel="loss")
    ax.tick_params(labelsize=7)
    ax.set_title(_TITLES[1], fontsize=10)
    return ax


def _shown(result: PlaneResult) -> tuple[Array, Array]:
    """The rows that were evaluated: their alpha_1 and losses."""
    return result.alpha_1[result.evaluated], result.losses[result.evaluated]


def _unit(name: str, relative: Array) -> str:
    """The coordinate with its unit in relative change of the weights."""
    unit = float(np.median(relative))
    if np.allclose(relative, 1.0, rtol=1e-6):
        return f"{name} (of ||w||)"
    return f"{name} ({number(unit)} ||w||)" if np.isfinite(unit) else name


def _symlog(result: SliceResult | PlaneResult) -> bool:
    """Whether the loss is shown on a symmetric-logarithmic scale: as asked for, or where its range is wide."""
    asked = result.meta.get("settings", {}).get("symlog")
    if asked is not None:
        return bool(asked)
    finite = result.losses[np.isfinite(result.losses)]
    if not len(finite):
        return False
    return bool(finite.max() - finite.min() > _WIDE * max(abs(result.loss), 1e-3 * float(np.abs(finite).max())))


def _threshold(result: SliceResult | PlaneResult) -> float:
    """Start of the logarithm: the loss at w, or a thousandth of the largest."""
    finite = np.abs(result.losses[np.isfinite(result.losses)])
    return float(max(abs(result.loss) if np.isfinite(result.loss) else 0.0, 1e-3 * finite.max(), np.finfo(np.float64).tiny))


def _scaled(result: PlaneResult, losses: Array) -> tuple[dict[str, Any], Array | None]:
    """Levels and colours of contours: even, or even in the symmetric logarithm; and ticks of the bar for the latter."""
    finite = losses[np.isfinite(losses)]
    low, high = float(finite.min()), float(finite.max())
    if not high > low:
        return {"levels": [low - 0.5, high + 0.5]}, None
    if not _symlog(result):
        return {"levels": np.linspace(low, high, _LEVELS)}, None
    from matplotlib.colors import SymLogNorm

    threshold = _threshold(result)
    ends = [np.sign(end) * np.log10(1 + abs(end) / threshold) for end in (low, high)]
    steps = np.linspace(ends[0], ends[1], _LEVELS)
    levels = np.sign(steps) * threshold * (10 ** np.abs(steps) - 1)
    return {"levels": levels, "norm": SymLogNorm(threshold, vmin=low, vmax=high, base=10)}, levels[:: _LEVELS // 5]
