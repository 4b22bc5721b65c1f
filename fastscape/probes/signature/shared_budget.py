"""Several probes under one budget: each gets its share of what is left, and one that fails costs no other its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastscape._checks import first_line
from fastscape.evaluation.determinism import NondeterministicLossError
from fastscape.probes.multifractal.result import TrajectoryResult
from fastscape.runs.anytime import Anytime
from fastscape.runs.budget import Budget, BudgetError, time_text

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One probe of several.

    Attributes:
        kind: of its result.
        share: of the time, relative to the other stages'.
        run: given its budget (``None`` without one) and the results so far.
    """

    kind: str
    share: float
    run: Callable[[Budget | None, Results], Any]


@dataclass
class Several:
    """Outcome of the stages.

    Attributes:
        results: by kind.
        missing: why there is none, by kind.
        notes: what failed and left a part, in words.
        stop_reason: ``"complete"``, ``"deadline"`` or ``"interrupted"``.
        seconds: allotted to each stage, where there is a budget.
    """

    results: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stop_reason: str = "complete"
    seconds: dict[str, float] = field(default_factory=dict)


def run_stages(stages: Sequence[Stage], clock: Budget) -> Several:
    """Run stages in order.

    A stage gets what is left of the budget times its share over those of the stages still to come, so that what one leaves goes
    to the others. Ctrl-C ends it; what was measured is kept.

    Raises:
        NondeterministicLossError: from the first stage that evaluates: none could be believed.
        KeyboardInterrupt: before the first result.
        BudgetError: no time was left for the first stage.
        Exception: the first stage's, where no stage has a result.
    """
    done, run = Several(), Anytime(clock)
    failures: list[Exception] = []
    before = clock.reserve + clock.elapsed
    with run.ends(lambda: done.results):
        _run(stages, run, done, failures, before)
    done.stop_reason = run.reason
    if run.reason == "interrupted":
        begun = {*done.results, *done.missing}
        done.missing |= {stage.kind: "the run was interrupted before it" for stage in stages if stage.kind not in begun}
    elif not done.results:
        nothing = BudgetError(f"budget must leave time for a probe, got {clock.seconds:g} s; use {time_text(before + 1)} or more")
        raise failures[0] if failures else nothing
    return done


def _run(stages: Sequence[Stage], run: Anytime, done: Several, failures: list[Exception], before: float) -> None:
    """Every stage in order, until one was interrupted."""
    for index, stage in enumerate(stages):
        limit = _limit(run.budget, stage, stages[index:])
        if limit is not None:
            done.seconds[stage.kind] = limit.seconds
        elif run.budget.limited:
            done.missing[stage.kind] = "no time was left"
            run.reason = "deadline"
            continue
        try:
            result = stage.run(limit, done.results)
        except NondeterministicLossError:
            raise
        except BudgetError as refused:
            error = run.budget.refusal(refused, f"the {stage.kind}", stage.share / sum(each.share for each in stages), before)
            failures.append(error)
            done.missing[stage.kind] = f"its share of the budget was too small: {first_line(error)}"
            run.reason = "deadline"
            continue
        except Exception as error:  # whatever a model raises, the other probes may have a result
            failures.append(error)
            result = _partial(error)
            words = f"it failed: {type(error).__name__}: {first_line(error)}"
            if result is None:
                done.missing[stage.kind] = words
                continue
            done.notes.append(f"{stage.kind}: {words}; what was measured before is kept")
        done.results[stage.kind] = result
        reason = result.meta.get("stop_reason")
        if reason in ("interrupted", "deadline"):
            run.reason = reason
        if reason == "interrupted":
            return


def _limit(clock: Budget, stage: Stage, rest: Sequence[Stage]) -> Budget | None:
    """The stage's own budget; ``None`` without one, and where nothing is left."""
    left = clock.remaining * stage.share / sum(each.share for each in rest) if clock.limited else 0.0
    return Budget(left) if left > 0 else None


def _partial(error: Exception) -> Any:
    """Partial result of a probe that failed midway, or ``None``."""
    found = getattr(error, "partial", None)
    if isinstance(found, TrajectoryResult):
        return found.points[0] if found.points else None
    return found
