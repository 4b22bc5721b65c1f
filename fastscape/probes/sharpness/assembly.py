"""The result of a sharpness run, from whatever it knew when it ended."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch

from fastscape._checks import counted
from fastscape._clock import now
from fastscape.evaluation.arithmetic import arithmetic, measured_in
from fastscape.evaluation.influence import STILL
from fastscape.evaluation.noise import SIGNAL_TO_NOISE
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, unknown
from fastscape.numerics.positive import skewed_mean, useful
from fastscape.probes.sharpness.result import SharpnessResult
from fastscape.probes.sharpness.run import SharpnessRun
from fastscape.runs.provenance import objective_meta

_ADDS_UP = 1e-4  # relative deviation of the mean over groups from the loss; float32 leaves 1e-6


def sharpness_result(run: SharpnessRun, name: str, step: int | None) -> SharpnessResult:
    """Result of what is known."""
    goals, groups = run.goals, run.groups
    average = run.work.analysed(lambda: _average_case(run), unknown(len(run.random) // 2))
    weights = np.array([group.weight for group in groups])
    worst = np.array([group.worst for group in groups])
    # A random point of all data bounds the mean over groups from below as well.
    known = [value for value in run.random if not math.isnan(value)]
    at_weights = run.loss - run.loss  # 0, or NaN where the loss is not finite
    mean = float(weights @ worst) if len(groups) else at_weights
    parts = {part: measured_in(run.objective, dtype) for part, dtype in run.dtypes.items()}
    words = {part: of.meta["arithmetic"] for part, of in parts.items()}
    same = len(set(words.values())) == 1
    described = words["worst"] if same else "; ".join(f"{part}: {found}" for part, found in words.items())
    settings = dataclasses.asdict(goals) | {"precision": None if goals.precision is None else str(goals.precision)[6:]}
    return SharpnessResult(
        name=name,
        step=step,
        variant=goals.variant,
        epsilon=goals.epsilon,
        loss=run.loss,
        worst=mean if math.isnan(mean) else max([mean, *known]),
        random=average,
        first_order=_mean(run, [group.first_order for group in groups]),
        quadratic=_mean(run, [math.nan if group.model is None else group.model.value for group in groups]),
        quadratic_bound=_mean(run, [math.nan if group.model is None else group.model.bound for group in groups]),
        restarts=_over_groups(run, [[ascent.best for ascent in group.ascents] for group in groups], len(run.starts)),
        starts=run.starts,
        curves=_curves(run),
        random_rises=np.array(run.random),
        m=goals.m,
        group_worst=worst,
        nonfinite=sum(a.nonfinite for group in groups for a in group.ascents) + int((~np.isfinite(run.random)).sum()),
        noise=run.noise[run.dtypes.get("worst", torch.float64)],
        meta=objective_meta(run.objective)
        | {
            "seed": goals.seed,
            "settings": settings,
            "arithmetic": described,
            "precision": {part: str(dtype)[6:] for part, dtype in run.dtypes.items()},
            "rounding_noise": {part: run.noise[dtype] for part, dtype in run.dtypes.items()},
            "evaluations": run.evaluations,
            "products": run.products,
            "product_path": run.path,
            "groups": len(groups),
            "seconds": now() - run.began,
            "stop_reason": run.work.reason,
        },
        notes=(*dict.fromkeys(note for part in parts.values() for note in part.notes), *run.notes, *_remarks(run)),
    )


def _average_case(run: SharpnessRun) -> Estimate:
    """Mean over pairs; NaN where steps inside the model, as of an autocast, are as large as what it averages."""
    found = useful(skewed_mean(np.array(run.random[: len(run.random) // 2 * 2]).reshape(-1, 2).mean(axis=1)), "pair")
    dtype = run.dtypes.get("random")
    inside = None if dtype is None else arithmetic(run.objective, dtype)
    stepped = inside is not None and not inside.plain
    least = SIGNAL_TO_NOISE * run.noise.get(dtype, math.nan) / math.sqrt(max(found.n, 1)) if dtype is not None else 0.0
    if stepped and abs(found.value) < least:
        remedy = "take a larger epsilon"
        if inside is not None and inside.autocast is not None and not inside.dropped:
            remedy = "precision='float64' measures without an autocast"
        run.notes.append(
            f"the average case is withheld: a rise of {found.value:.1e} is within 10 times the error of the model's own "
            f"roundings, {least / SIGNAL_TO_NOISE:.1e}; {remedy}"
        )
        return Estimate(
            math.nan, math.nan, (math.nan, math.nan), found.n, withheld="within the error of the model's own roundings"
        )
    return found


def _remarks(run: SharpnessRun) -> Iterator[str]:
    if run.fixed:
        names = ", ".join(run.fixed[:3]) + (" ..." if len(run.fixed) > 3 else "")
        yield f"{counted(len(run.fixed), 'parameter')} at zero never moved: {names}"
    seen = [*run.random, *(value for group in run.groups for ascent in group.ascents for value in ascent.values)]
    if 0.0 in seen and not any(value for value in seen if not math.isnan(value)):
        yield STILL
    if run.goals.m is not None and run.objective.batch_norm == "batch":
        yield "batch norm takes the statistics of every group of m samples"
    elif abs(_mean(run, [group.base for group in run.groups]) - run.loss) > _ADDS_UP * abs(run.loss):  # not of NaN
        yield "the losses of the groups do not average to that of the data: its samples are not the rows of its batches"


def _mean(run: SharpnessRun, values: list[float]) -> float:
    """Over groups, weighted by terms."""
    return float(sum(group.weight * value for group, value in zip(run.groups, values, strict=True))) if values else math.nan


def _curves(run: SharpnessRun) -> Array:
    """Rises along the ascents ``[R, steps + 1]``, of no steps where no ascent was made."""
    found = _over_groups(run, [[ascent.values for ascent in group.ascents] for group in run.groups], len(run.starts))
    return found if found.ndim == 2 else np.zeros((len(run.starts), 0))


def _over_groups(run: SharpnessRun, values: object, starts: int) -> Array:
    """Weighted mean over groups of ``[groups, starts, ...]``; -inf, where nothing was found, becomes NaN."""
    table = np.array(values, dtype=np.float64)
    if not table.size:
        return np.full(starts, np.nan)
    with np.errstate(invalid="ignore"):
        weights = np.array([group.weight for group in run.groups])
        mean: Array = np.tensordot(weights, np.where(np.isneginf(table), np.nan, table), axes=1)
    return mean
