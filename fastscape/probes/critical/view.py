"""Tables, figures and pages of the critical sharpness."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from fastscape.numerics.estimate import Estimate
from fastscape.probes.critical.figures import along
from fastscape.probes.critical.result import CriticalSharpnessResult
from fastscape.reports.numbers import interval, number, with_error
from fastscape.reports.sections import Figure, Quantity, Section, section_of
from fastscape.runs.provenance import remarks_and_notes


@section_of.register
def critical_section(result: CriticalSharpnessResult) -> Section:
    """The step at which the loss begins to rise, and what it amounts to."""
    over = result.meta.get("errors_over", "samples")
    words = (
        f"L(w + eta u) - L(w) at every step tried, u the {result.update or 'update'}, with 2 standard errors over {over}; "
        "hollow: within them or within rounding. The band is the bracket, the line eta_c, the dashed line the learning rate."
    )
    return Section(
        f"Critical sharpness: {result.name}",
        _verdict(result),
        tuple(_quantities(result)),
        (Figure("Loss along the update", partial(along, result), words),),
        flags=(*remarks_and_notes(result.meta, result.notes), *_raised(result)),
        brief=_verdict(result),
    )


def _quantities(result: CriticalSharpnessResult) -> Iterator[Quantity]:
    low, high = result.bracket
    yield Quantity("loss", number(result.loss, 5), "L(w)")
    yield Quantity("eta_c", interval(result.eta_c), "smallest step along u at which the loss exceeds L(w), in units of u")
    yield Quantity("lambda_c", interval(result.lambda_c), "2 / eta_c; g'Hg / g'g where u = -g and the loss is quadratic")
    yield Quantity(
        "bracket", f"{number(low, 4)} .. {number(high, 4)}", "the last step that does not exceed L(w), and the first that does"
    )
    if result.rate is not None:
        yield Quantity("2 / rate", number(result.critical), f"of the optimizer's learning rate, {number(result.rate)}")
    yield Quantity("||u|| / ||w||", number(result.relative_norm), f"u is the {result.update or 'update'}")
    if not math.isnan(result.curvature):
        error = result.curvature_error
        shown = with_error(result.curvature, error) if error > 0 else number(result.curvature, 4)
        yield Quantity("u'Hu / u'u", shown, "curvature along the update")
        yield Quantity("-u'Hu / g'u", number(result.quadratic, 4), "lambda_c of the quadratic model along the update")
    yield Quantity("forwards", str(result.meta.get("steps", "")), "of the search, that at w included")


def _verdict(result: CriticalSharpnessResult) -> str:
    low, high = result.bracket
    match result.outcome:
        case "undefined":
            return f"No critical sharpness: the loss at w is {number(result.loss)}."
        case "never rises":
            return f"The loss does not rise along the update: none up to eta = {number(low)}."
        case "rises at once":
            return (
                "No step along the update lowers the loss by more than rounding: eta_c is below the smallest step that can be "
                f"resolved, and the loss rises from eta = {number(high)} at the latest."
            )
        case "undecided" if math.isnan(result.eta_c.value):
            return "Undecided: the differences of the loss along the update are within their standard errors."
        case "undecided":
            return f"Undecided: eta_c = {interval(result.eta_c)} is within the standard error of the samples."
        case "unfinished" if math.isnan(result.eta_c.value):
            return f"Not finished: the loss rises between eta = {number(low)} and {number(high)}."
    text = f"The loss exceeds L(w) from eta_c = {_short(result.eta_c)} on: lambda_c = {_short(result.lambda_c)}"
    if result.rate:
        share = result.rate / result.eta_c.value
        text += f", {number(share)} of 2 / rate: the optimizer's step {'raises' if share > 1 else 'lowers'} the loss"
    return text + "."


def _short(estimate: Estimate) -> str:
    """In a sentence, in which an interval that there is not is not missed."""
    return number(estimate.value, 4) if math.isnan(estimate.interval[0]) else interval(estimate)


def _raised(result: CriticalSharpnessResult) -> Iterator[str]:
    reason = result.meta.get("stop_reason")
    if reason in ("deadline", "interrupted") and result.outcome == "unfinished":
        yield f"ended early ({reason}): the bracket is wider than was asked for, or open"
    precision = result.meta.get("precision")
    if result.outcome == "rises at once" and precision != "float64":
        wider = "float64" if precision == "float32" else "float32"
        yield f"a difference of losses is known to {result.noise:.1e} in {precision}; precision={wider!r} resolves smaller steps"
    if len(result.decided) and not result.decided.any():
        yield "no difference is beyond two standard errors: on other samples the signs may be others"
