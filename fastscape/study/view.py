"""Page of a study: table 1, claims, hypothesis H5, warnings, and a section for each architecture."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from functools import partial

import numpy as np

from fastscape._checks import counted
from fastscape.reports.numbers import interval, number, p_text
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of
from fastscape.study import figures
from fastscape.study.result import RunResult, StudyResult
from fastscape.study.seeds import geometric, over_seeds, pairs, text

SOURCE = "Venkatasubramanian, Loss Landscape Geometry & Optimization Dynamics in Deep Neural Architectures (2025)"
BATCH_NORM = (
    "numbers, and claims that rest on them, are of the function that was trained: by the statistics of each batch. Rows of "
    "running statistics stand beside them: these lag behind early in training, and make it another, far sharper function"
)
_TABLE = {  # heading: (field, definition)
    "trace": ("trace", "tr(H), Hutchinson with deflation"),
    "lambda_max": ("lambda_max", "largest eigenvalue of the Hessian, block Lanczos"),
    "tr/D": ("mean_curvature", "curvature mass, tr(H) over the number of parameters"),
    "R": ("roughness", "variance of the loss along filter-normalised random lines, mean over directions"),
    "R detrended": ("roughness_detrended", "the same without the best quadratic"),
    "r_eff": ("effective_rank", "tr(H)^2 / tr(H^2)"),
    "NS": ("normalized_sharpness", "largest rise within the normalised balls that ascent found: a lower bound"),
}
_FINAL = {
    **_TABLE,
    "T": ("temperature", "effective temperature of SGD, (eta/2) tr(Sigma_B)/D, eta over 1 - momentum"),
    "stability": ("stability_ratio", "sharpness over the critical value of SGD with momentum"),
}


def table(result: StudyResult, when: str, columns: Mapping[str, tuple[str, str]], caption: str) -> Grid:
    """Geometric means over seeds with 95 % intervals, a row for each architecture, and one more by running statistics."""
    rows = []
    for running, label in ((False, "{}"), (True, "{}, running statistics")):
        cells = {heading: result.across(field, when, running=running) for heading, (field, _) in columns.items()}
        rows += [
            {
                "model": label.format(name),
                "D": f"{result.of(name)[0].size:,}",
                **{heading: text(found[name]) for heading, found in cells.items()},
            }
            for name in result.architectures
            if result.signatures(name, when, running=running)
        ]
    rows.sort(key=lambda row: [row["model"].startswith(name) for name in result.architectures].index(True))
    return Grid(caption, tuple(rows), {heading: words for heading, (_, words) in columns.items()})


def table1(result: StudyResult) -> Grid:
    """The source's table 1 with intervals over seeds."""
    share = f"{result.plan['early']:.0%} of training"
    return table(result, "early", _TABLE, f"Table 1: early loss geometry, at {share}; geometric mean over seeds [95 %]")


def claims_grid(result: StudyResult) -> Grid:
    """Claims of the paper, and which were reproduced."""
    rows = [
        {"claim of the source": claim.claim, "section": claim.where, "here": claim.outcome, "evidence": claim.evidence}
        for claim in result.claims()
    ]
    return Grid(
        "The source's claims", tuple(rows), {"here": "inconclusive where the 95 % interval over seeds holds both answers"}
    )


def associations_grid(result: StudyResult) -> Grid:
    """Hypothesis H5."""
    rows = [
        {
            "early signal": found.early,
            "outcome": found.outcome,
            "rho [95 %]": "n/a" if np.isnan(found.rho) else interval(found.estimate),
            "p": p_text(found.p),
            "tau": number(found.tau, 2),
            "runs": str(found.n),
            "note": found.reason,
        }
        for found in result.associations()
    ]
    meaning = "Spearman's rank correlation over runs, within architectures; bootstrap interval, permutation p"
    return Grid("Hypothesis H5: do early signals predict outcomes?", tuple(rows), {"rho [95 %]": meaning})


def outcomes_grid(result: StudyResult) -> Grid:
    """Outcomes of the runs."""
    rows = []
    for name in result.architectures:
        runs = result.of(name)
        linear = pairs(result.barriers[name].linear) if name in result.barriers else np.empty(0)
        rows.append(
            {
                "model": name,
                "training loss": text(geometric([run.outcome.train_loss for run in runs])),
                "test loss": text(geometric([run.outcome.test_loss for run in runs])),
                "test accuracy": text(over_seeds([_known(run.outcome.test_accuracy) for run in runs])),
                "halved after": text(over_seeds([run.outcome.halved for run in runs])),
                "B_lin": text(over_seeds(linear.tolist())),
                "O(w0)": text(geometric([_part(run, "value") for run in runs])),
                "O dimensionless": text(geometric([_part(run, "dimensionless") for run in runs])),
            }
        )
    return Grid(
        "Outcomes and dynamics; mean over seeds [95 %], geometric of losses and O",
        tuple(rows),
        {
            "halved after": "share of training after which the moving average of the minibatch loss was half of the first",
            "B_lin": "barrier between the final states of two seeds, max over a of L(w(a)) - (1-a) L_A - a L_B; over pairs",
            "O(w0)": "optimisation difficulty, sum over steps of eta ||g||^2 ||H||_2 with minibatch gradients",
            "O dimensionless": "half of O over the descent of the loss: curvature's cost over what was gained",
        },
    )


def warnings_grid(result: StudyResult) -> Grid:
    """Number of times that each rule fired, by architecture, at the early step and at the end."""
    rows = []
    for when in ("early", "final"):
        counts: dict[str, dict[str, Counter[str]]] = {}
        signatures = [getattr(run, when) for run in result.runs]  # of all models: what is low in curvature is low among them
        for run, signature in zip(result.runs, signatures, strict=True):
            for verdict in signature.warnings(reference=signatures):
                counts.setdefault(verdict.rule, {}).setdefault(run.architecture, Counter())[verdict.status] += 1
        rows += [
            {"rule": rule, "at": when, **{name: _counts(found.get(name, Counter())) for name in result.architectures}}
            for rule, found in counts.items()
        ]
    return Grid("Early warnings", tuple(rows), {"rule": "inconclusive where the interval crosses the threshold"})


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{status} {count}" for status, count in found.most_common()) or "n/a"


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


def _part(run: RunResult, field: str) -> float:
    found = run.parts.get("difficulty")
    if found is None:
        return float("nan")
    value = getattr(found, field)
    return float(getattr(value, "value", value))


@section_of.register
def study_section(result: StudyResult) -> Section:
    """The whole page."""
    grids = [table1(result), outcomes_grid(result), claims_grid(result), associations_grid(result), warnings_grid(result)]
    seeds = max((len(result.of(name)) for name in result.architectures), default=0)
    normed = [name for name in result.architectures if result.signatures(name, running=True)]
    drawn = (
        Figure(
            "Early signature",
            partial(figures.compared, result),
            "Table 1: a mark for each seed; bars are geometric means with the 95 % interval of Student's t on logarithms.",
            panels=(1, len(figures.COMPARED)),
        ),
        Figure(
            "Training", partial(figures.losses, result), "Minibatch losses averaged over a fiftieth of the run; a line a seed."
        ),
        Figure(
            "H5",
            partial(figures.predictions, result),
            "Early signals against the final test loss, a mark for each run; H5 asks for an order within one colour.",
            panels=(1, 3),
        ),
    )
    return Section(
        f"Landscape study: {', '.join(result.architectures)}",
        verdict(result),
        (
            Quantity("plan", result.name, f"{counted(len(result.runs), 'run')}, up to {counted(seeds, 'seed')} of each model"),
            Quantity("source", "2025", SOURCE),
            *((Quantity("batch norm", ", ".join(normed), BATCH_NORM),) if normed else ()),
        ),
        drawn,
        tuple(grids),
        result.notes,
        tuple((key, str(value)) for key, value in result.plan.items()),
        tuple(architecture_section(result, name) for name in result.architectures),
    )


def verdict(result: StudyResult) -> str:
    """Numbers of the paper's claims by outcome."""
    found = Counter(claim.outcome for claim in result.claims())
    total = sum(found.values())
    return f"Of the paper's {total} claims: {', '.join(f'{n} {_SAID.get(claim, claim)}' for claim, n in found.most_common())}."


def architecture_section(result: StudyResult, name: str) -> Section:
    """Figures 1 to 3 of the source for one architecture, from its first seed, and everything that was measured there."""
    runs = result.of(name)
    first = runs[0]
    shown = [first.parts[key].part() for key in _SHOWN if key in first.parts]
    tracked = tuple(run for run in runs if "difficulty" in run.parts)
    ink = figures.colour(result, name)
    along = Figure(
        "Sharpness along training",
        lambda ax: figures.sharpness_along(tracked, ink, ax),
        "Spectral norm of the Hessian, warm-started, a line for each seed; dashed: 2 (1 + momentum)/eta.",
    )
    barrier = [result.barriers[name].part()] if name in result.barriers else []
    row = table(result, "final", _FINAL, "At the end of training; geometric mean over seeds [95 %]")
    return Section(
        name,
        f"{result.plan['networks'][name]}; {result.plan['optimizers'][name]}.",
        figures=tuple(figure for section in shown for figure in section.figures) + ((along,) if tracked else ()),
        grids=(Grid(row.caption, tuple(cells for cells in row.rows if cells["model"].startswith(name)), row.definitions),),
        children=(*(_folded(section) for section in barrier), *(_folded(run_section(run)) for run in runs[:1])),
    )


def _folded(section: Section, *, drawn: bool = True) -> Section:
    return dataclasses.replace(section, folded=True, figures=section.figures if drawn else ())


_SAID = {"seen": "reproduced", "not seen": "not reproduced"}
_SHOWN = ("final.slice", "final.plane", "final.spectrum")  # whose figures stand above
_LISTED = ("tracking", "difficulty", *_SHOWN, "final.sharpness", "final.temperature", "final.multifractal")


@section_of.register
def run_section(run: RunResult) -> Section:
    """One run with its signatures and the parts of its end; those of the early step are in the result file."""
    outcome = run.outcome
    accuracy = "" if outcome.test_accuracy is None else f", accuracy {outcome.test_accuracy:.1%}"
    signatures = [_folded(signature.part(), drawn=False) for signature in (run.early, run.final)]
    parts = [_folded(run.parts[key].part(), drawn=key not in _SHOWN) for key in _LISTED if key in run.parts]
    return Section(
        run.name,
        f"test loss {number(outcome.test_loss)}{accuracy}; training loss {number(outcome.train_loss)}.",
        flags=run.notes,
        children=(*signatures, *parts),
    )
