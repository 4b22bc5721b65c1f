"""Figures of multifractal results (matplotlib). Each takes a result and an ``ax``, and returns the ``ax``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.reports.axes import BLUE, GREY, ORANGE, RED, grid, literal, nothing, single, step_axis, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastscape.probes.multifractal.result import MultifractalResult, TrajectoryResult

_EPS = r"radius $\epsilon\,/\,\|w\|$"


def _shade(result: MultifractalResult, ax: Axes) -> None:
    """Shade the analysed windows, and grey out the scales that are not trusted."""
    eps, mask = result.measured.eps_rel, result.analysis.trust.mask
    edges = np.sqrt(eps[1:] * eps[:-1])
    edges = np.concatenate([[eps[0] ** 1.5 / eps[1] ** 0.5], edges, [eps[-1] ** 1.5 / eps[-2] ** 0.5]])
    for k in np.flatnonzero(~mask):
        ax.axvspan(edges[k], edges[k + 1], color="#e3e5e8", lw=0, zorder=0)
    for start, stop in result.analysis.windows:
        ax.axvspan(edges[start], edges[stop], color=BLUE, alpha=0.07, lw=0, zorder=0)
    ax.set_xlim(edges[0], edges[-1])


def _log_scale_axis(ax: Axes, title: str, ylabel: str) -> Axes:
    ax.set_xscale("log")
    return titled(ax, title, _EPS, ylabel)


def _all_directions(result: MultifractalResult) -> Array | None:
    response = result.measured.response(result.analysis.settings.variant)
    return np.concatenate(response, axis=1) if response else None


def log_response(result: MultifractalResult, ax: Axes | None = None) -> Axes:
    """|response| of every direction against the radius, median, noise floor; untrusted scales grey."""
    ax = single(ax)
    title = "Response magnitude"
    signed = _all_directions(result)
    if signed is None or not np.isfinite(signed).any():
        return nothing(ax, title, "no finite response")
    with np.errstate(invalid="ignore"):
        r = np.where(np.isfinite(signed) & (signed != 0), np.abs(signed), np.nan)
    eps = result.measured.eps_rel
    shown = r[:, : min(64, r.shape[1])]
    ax.plot(eps, shown, color=BLUE, alpha=0.25, lw=0.7)
    negative = np.where(signed[:, : shown.shape[1]] < 0, shown, np.nan)
    ax.plot(eps, negative, ".", color=RED, ms=3, alpha=0.5)
    ax.plot(
        eps,
        np.nanmedian(np.where(np.isnan(r).all(axis=1, keepdims=True), 0, r), axis=1),
        color="k",
        lw=1.6,
        label="median",
    )
    if (result.measured.noise > 0).all():
        ax.plot(eps, result.measured.noise, "--", color=ORANGE, lw=1.3, label="rounding noise (RMS)")
    ax.plot([], [], ".", color=RED, label="negative")
    ax.set_yscale("log")
    _shade(result, ax)
    ax.legend(fontsize=7, loc="lower right")
    symbol = r"$|\Delta_2 L|$" if result.analysis.settings.variant == "even" else r"$|\Delta_1 L|$"
    return _log_scale_axis(ax, title, f"{symbol} (loss units)")


def curvature(result: MultifractalResult, ax: Axes | None = None) -> Axes:
    """Even response over eps^2 against the radius: flat where the loss is quadratic."""
    ax = single(ax)
    title = r"Finite-scale curvature $\Delta_2 L/\epsilon^2$ (flat: quadratic)"
    response = result.measured.response("even")
    if not response or not np.isfinite(response[0]).any():
        return nothing(ax, title, "no finite response")
    eps = result.measured.eps_rel
    curve = np.concatenate(response, axis=1) / eps[:, None] ** 2
    ax.plot(eps, curve[:, :64], color=BLUE, alpha=0.25, lw=0.7)
    ax.plot(eps, np.median(curve, axis=1), color="k", lw=1.6, label="median")
    floor = result.measured.noise / eps**2
    ax.plot(eps, floor, "--", color=ORANGE, lw=1.2, label="rounding noise")
    ax.plot(eps, -floor, "--", color=ORANGE, lw=1.2)
    trusted = curve[result.analysis.trust.mask]
    if trusted.size:
        reach = 1.3 * float(np.nanmax(np.abs(trusted)))
        if np.isfinite(reach) and reach > 0:
            ax.set_ylim(-reach if (trusted < 0).any() else -0.1 * reach, reach)
    ax.axhline(0, color=GREY, lw=0.6)
    _shade(result, ax)
    ax.legend(fontsize=7)
    return _log_scale_axis(ax, title, r"$\Delta_2 L/\epsilon_{\rm rel}^2$ (loss units)")


def partition_function(result: MultifractalResult, ax: Axes | None = None) -> Axes:
    """Ln Z_q - ln Z_q(first) against the radius for several q, with fitted lines over the window."""
    ax = single(ax)
    title = r"Partition function $\ln Z_q(\epsilon)$ and fits"
    if not result.analysis.valid:
        return nothing(ax, title, result.analysis.reason)
    q, eps = np.array(result.analysis.settings.q), result.measured.eps_rel
    profile, window = result.analysis.profiles[0], result.analysis.pooled[0][0]
    start, stop = window.window
    chosen = [order for order in (-3, -1, 0.5, 2, 4) if order in q] or q[:: max(1, len(q) // 5)].tolist()
    import matplotlib as mpl

    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(chosen)))
    x = np.log(result.measured.radii)
    for colour, order in zip(colours, chosen, strict=True):
        at = int(np.flatnonzero(q == order)[0])
        shift = np.nanmean(profile.log_z[start:stop, at])
        ax.plot(eps, profile.log_z[:, at] - shift, "o", ms=3, color=colour, label=f"q = {order:g}")
        line = window.spectrum.tau_intercept[at] + window.spectrum.tau[at] * x[start:stop] - shift
        ax.plot(eps[start:stop], line, color=colour, lw=1.2)
    ax.margins(y=0.12)
    _shade(result, ax)
    ax.legend(fontsize=7, ncols=2)
    return _log_scale_axis(ax, title, r"$\ln Z_q$ minus its mean")


def tau_curve(result: MultifractalResult, ax: Axes | None = None) -> Axes:
    """tau(q) with its 95 % band where the directions support the order; a straight line means one scaling for all directions."""
    ax = single(ax)
    title = r"Mass exponent $\tau(q)$, 95 % band"
    curve = result.analysis.tau
    if curve is None:
        return nothing(ax, title, result.analysis.reason)
    q = np.array(result.analysis.settings.q)
    ax.fill_between(q, curve.lower, curve.upper, color=BLUE, alpha=0.2, lw=0)
    ax.plot(q, curve.value, "o-", color=BLUE, ms=3, lw=1.3)
    ax.axhline(0, color=GREY, lw=0.6)
    ax.plot([0, 1], [0, 0], "s", color="k", ms=4, label=r"$\tau(0)=\tau(1)=0$")
    ax.legend(fontsize=7)
    return titled(ax, title, "order q", r"$\tau(q)$")


def spectrum(result: MultifractalResult, ax: Axes | None = None) -> Axes:
    """F against alpha (Chhabra-Jensen slopes), with q = 0 and q = 1 marked."""
    ax = single(ax)
    title = r"Singularity spectrum $f(\alpha)$"
    alpha, f = result.analysis.alpha, result.analysis.f
    if alpha is None or f is None:
        return nothing(ax, title, result.analysis.reason)
    q = np.array(result.analysis.settings.q)
    error = [np.abs(alpha.value - alpha.lower), np.abs(alpha.upper - alpha.value)]
    ax.errorbar(alpha.value, f.value, xerr=error, fmt="o-", color=BLUE, ecolor="#a9c6e2", ms=3, lw=1.1, elinewidth=0.8)
    for order, marker in ((0.0, "s"), (1.0, "D")):
        at = q == order
        ax.plot(alpha.value[at], f.value[at], marker, color="k", ms=6, mfc="none", label=f"q = {order:g}")
    ax.legend(fontsize=7)
    return titled(ax, title, r"$\alpha(q)$", r"$f(q)$")


def exponent_histogram(result: MultifractalResult, ax: Axes | None = None) -> Axes:
    """Histogram of the per-direction exponents h."""
    ax = single(ax)
    title = "Per-direction exponents h"
    if not result.analysis.valid:
        return nothing(ax, title, result.analysis.reason)
    h = np.concatenate([group[0].holder.h for group in result.analysis.pooled])
    h = h[np.isfinite(h)]
    if not len(h):
        return nothing(ax, title, "no direction has a finite exponent")
    centre, spread = float(np.median(h)), max(float(np.ptp(h)), 1e-6)
    ax.hist(
        h,
        bins=min(40, max(8, len(h) // 12)),
        range=(centre - spread, centre + spread) if spread < 1e-5 else None,
        color=BLUE,
        alpha=0.75,
    )
    ax.axvline(centre, color="k", lw=1.3, label=f"median {centre:.3f}")
    if ax.get_xlim()[0] < 2 < ax.get_xlim()[1]:
        ax.axvline(2, color=ORANGE, ls="--", lw=1.2, label="2 (quadratic)")
    ax.legend(fontsize=7)
    ax.ticklabel_format(axis="x", useOffset=False)
    return titled(ax, title, "h  (|response| ~ ε^h)", "directions")


def slopes(result: MultifractalResult, ax: Axes | None = None) -> Axes:
    """Local slopes of ln r (median over directions) between neighbouring scales."""
    ax = single(ax)
    title = "Local slope of |response| (2: quadratic)"
    signed = _all_directions(result)
    if signed is None or not np.isfinite(signed).any():
        return nothing(ax, title, "no finite response")
    eps = result.measured.eps_rel
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.diff(np.log(np.abs(signed)), axis=0) / np.diff(np.log(eps))[:, None]
    rows = [row[np.isfinite(row)] for row in steps]
    quartiles = np.array([np.percentile(row, [25, 50, 75]) if len(row) else [np.nan] * 3 for row in rows])
    middle = np.sqrt(eps[1:] * eps[:-1])
    ax.fill_between(middle, quartiles[:, 0], quartiles[:, 2], color=BLUE, alpha=0.2, lw=0, label="quartiles")
    ax.plot(middle, quartiles[:, 1], "o-", color=BLUE, ms=3, lw=1.3, label="median")
    ax.axhline(2, color=ORANGE, ls="--", lw=1)
    trusted = result.analysis.trust.mask
    inside = quartiles[trusted[1:] & trusted[:-1]]
    if inside.size and np.isfinite(inside).all():
        low, high = min(inside.min(), 2.0), max(inside.max(), 2.0)
        ax.set_ylim(low - 0.25 * (high - low) - 0.1, high + 0.25 * (high - low) + 0.1)
    _shade(result, ax)
    ax.legend(fontsize=7)
    return _log_scale_axis(ax, title, r"$d\ln|\Delta L|\,/\,d\ln\epsilon$")


def heterogeneity(result: MultifractalResult, ax: Axes | None = None) -> Axes:
    """Variance of ln r over directions, C2, against the radius; its slope is c2."""
    ax = single(ax)
    title = r"Log-cumulant $C_2(\epsilon)$ = var ln r, slope $c_2$"
    if not result.analysis.valid:
        return nothing(ax, title, result.analysis.reason)
    eps, x = result.measured.eps_rel, np.log(result.measured.radii)
    profile, window = result.analysis.profiles[0], result.analysis.pooled[0][0]
    part = slice(*window.window)
    ax.plot(eps, profile.C2, "o", ms=3, color=BLUE)
    fit = window.cumulants.c2 * (x[part] - x[part].mean()) + window.cumulants.C2.mean()
    ax.plot(eps[part], fit, color=BLUE, lw=1.2, label=f"c2 = {window.cumulants.c2:.3g}")
    _shade(result, ax)
    ax.legend(fontsize=7)
    return _log_scale_axis(ax, title, r"$C_2$ (nats$^2$)")


def participation(result: MultifractalResult, ax: Axes | None = None) -> Axes:
    """Share of the directions that carry the response, 1 / (N Z_2), and share of negative responses."""
    ax = single(ax)
    title = "Anisotropy at each scale"
    if not result.analysis.profiles:
        return nothing(ax, title, result.analysis.reason)
    profile, eps = result.analysis.profiles[0], result.measured.eps_rel
    ax.plot(eps, profile.participation, "o-", ms=3, lw=1.3, color=BLUE, label=r"participation $1/(N Z_2)$")
    ax.plot(eps, profile.neg_frac, "o-", ms=3, lw=1.0, color=RED, label="share of negative responses")
    ax.set_ylim(-0.03, 1.03)
    _shade(result, ax)
    ax.legend(fontsize=7)
    return _log_scale_axis(ax, title, "share of directions")


CAPTIONS: dict[str, str] = {
    "log_response": (
        "r = |L(w + e d) - 2 L(w) + L(w - e d)| of up to 64 directions d against the radius e relative to ||w||, with the median "
        "over all and the rounding noise; red where the response is negative. Blue: the analysed window of scales, decades = "
        "log10 of its largest over its smallest radius; grey: scales that are not trusted. A slope of h means r ~ e^h."
    ),
    "curvature": "The signed response over e^2: flat where the loss is quadratic, d'Hd in the limit of small radii.",
    "slopes": "Slope of ln r against ln e between neighbouring scales, median and quartiles over directions; 2 = smooth bowl.",
    "partition_function": (
        "Partition function Z_q(e) = sum_i p_i^q of the measure p_i = r_i / sum r over directions, its logarithm minus its mean "
        "over the window, with the fitted lines, whose slope is tau(q)."
    ),
    "tau_curve": (
        "Mass exponent tau(q), slope of ln Z_q against ln e, with its 95 % band at the orders q that so many directions "
        "determine. It is a straight line where all directions scale alike; M_tau is its root-mean-square deviation from one."
    ),
    "spectrum": "Singularity spectrum f(alpha) by Chhabra and Jensen's slopes, alpha = d tau / dq, with bands where there are.",
    "exponent_histogram": "Exponents h of the single directions, slopes of ln r over the window; a smooth bowl has 2 everywhere.",
    "heterogeneity": (
        "Variance of ln r over directions at every scale, and its line over the window: c2 is the slope. Falling: directions "
        "differ more at small radii; level: their spread does not change with scale."
    ),
    "participation": "Share of the directions that carry the response, 1 / (N sum p_i^2), and share of negative responses.",
}
TRAJECTORY_CAPTIONS: tuple[str, ...] = (
    "M_tau, root-mean-square deviation of tau(q) from a straight line on the orders that the directions support at each "
    "checkpoint, 95 % interval (hollow: without); where the table names different orders, two points do not compare.",
    "c2, slope of the variance of ln r over directions against ln e, 95 % interval; below 0 directions differ more at small "
    "radii. Hollow: without interval; crossed: p > 0.05 by Student's t over directions.",
    "Mean over directions of the exponent h in r ~ e^h (blue, 95 % interval; dashed: 2, a smooth bowl) and its standard "
    "deviation (orange).",
    "Loss and accuracy on the probed data.",
    "Norm of the probed weights, to which radii are relative.",
    "Mass exponent tau(q) of every checkpoint, from first (dark) to last (light).",
)
CHECKPOINT_FIGURES: tuple[Callable[[MultifractalResult, Axes | None], Axes], ...] = (
    log_response,
    curvature,
    slopes,
    partition_function,
    tau_curve,
    spectrum,
    exponent_histogram,
    heterogeneity,
    participation,
)


def _series(result: TrajectoryResult, ax: Axes, name: str, colour: str, label: str) -> None:
    value, low, high = result.series(name)
    order = np.argsort(result.steps, kind="stable")
    x = result.steps[order]
    if np.isfinite(low).any():
        ax.fill_between(x, low[order], high[order], color=colour, alpha=0.18, lw=0)
    ax.plot(x, value[order], "o-", color=colour, ms=4, lw=1.4, label=label)


def trajectory_panels(result: TrajectoryResult, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Six panels along training: M_tau, c2, exponents, loss and accuracy, ||w||, tau(q) early to late."""
    if axes is None:
        axes = grid(2, 3, (13, 7))
    if len(axes) != 6:
        raise ValueError(f"axes must be six, got {len(axes)}")
    import matplotlib as mpl

    panels = (
        ("m_tau_supported", r"$M_\tau$, supported orders (95 % interval)", r"$M_\tau$"),
        ("c2", r"$c_2$ (95 % interval)", r"$c_2$"),
    )
    for ax, (name, title, label) in zip(axes, panels, strict=False):
        value, low, _ = result.series(name)
        _series(result, ax, name, BLUE, label)
        ax.plot(result.steps[np.isnan(low)], value[np.isnan(low)], "o", mfc="white", mec=BLUE, ms=5, label="no interval")
        ax.axhline(0, color=GREY, lw=0.6)
        ax.set_title(title, fontsize=10)
        ax.set_ylabel(label)
    p_value = result.series("p_value")[0]
    quiet = p_value > 0.05
    axes[1].plot(result.steps[quiet], result.series("c2")[0][quiet], "x", color=RED, ms=6, label="p > 0.05")
    axes[0].set_ylim(bottom=0)
    axes[1].legend(fontsize=7)
    _series(result, axes[2], "h_mean", BLUE, "mean h")
    axes[2].axhline(2, color=GREY, ls="--", lw=0.8)
    axes[2].set_ylabel("mean h", color=BLUE)
    spread = axes[2].twinx()
    _series(result, spread, "h_std", ORANGE, "std h")
    spread.set_ylabel("std h over directions", color=ORANGE)
    axes[2].set_title("Per-direction exponents", fontsize=10)
    _series(result, axes[3], "loss", RED, "loss")
    axes[3].set_ylabel("loss", color=RED)
    axes[3].set_title("Loss and accuracy on the probed data", fontsize=10)
    if np.isfinite(result.series("accuracy")[0]).any():
        share = axes[3].twinx()
        _series(result, share, "accuracy", BLUE, "accuracy")
        share.set_ylabel("accuracy", color=BLUE)
    _series(result, axes[4], "weight_norm", "k", "||w||")
    axes[4].set_ylabel(r"$\|w\|$")
    axes[4].set_title("Weight norm", fontsize=10)
    for ax in axes[:5]:
        step_axis(result.points, result.steps, ax)
    if not np.isfinite(result.series("m_tau_supported")[0]).any():
        known = (point.analysis.estimates.get("m_tau_supported") for point in result.points)
        nothing(axes[0], panels[0][1], next((found.withheld for found in known if found is not None), "no checkpoint has one"))
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, max(1, len(result.points))))
    for colour, point in zip(colours, result.points, strict=True):
        if point.analysis.tau is not None:
            axes[5].plot(point.analysis.settings.q, point.analysis.tau.value, color=colour, lw=1.3, label=literal(point.name))
    axes[5].axhline(0, color=GREY, lw=0.6)
    axes[5].set(xlabel="order q", ylabel=r"$\tau(q)$")
    axes[5].set_title(r"$\tau(q)$, first to last checkpoint", fontsize=10)
    if axes[5].get_legend_handles_labels()[0]:
        axes[5].legend(fontsize=6, ncols=2)
    return axes
