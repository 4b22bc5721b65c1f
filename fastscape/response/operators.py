"""Treatment of every operation of a model by difference propagation."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fastscape._renamed import METHOD, renamed
from fastscape.differences.evaluator import DifferenceEvaluator, FrontEnd
from fastscape.differences.rules.table import PIECEWISE, RULES, STRUCTURE
from fastscape.directions import Directions
from fastscape.evaluation.determinism import unperturbed_loss
from fastscape.objective.objective import Objective, checked_objective

_TRIED = [0.0, 1e-3]  # radii of one direction, to see which operations take local evaluations


@dataclass(frozen=True)
class Handled:
    """One kind of operation of a model.

    Attributes:
        operation: its name in torch.
        calls: in one forward.
        modules: kinds of module that call it.
        how: what becomes of differences in it.
    """

    operation: str
    calls: int
    modules: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class Operators:
    """The operations of a model; ``str()`` is a table.

    Attributes:
        front_end: what followed the model: ``"graph"`` or ``"dispatch"``.
        smooth: whether everything that moves is analytic in the parameters; false by dispatch, which does not look ahead.
        rows: one per operation and handling; by dispatch, of what moves, without modules.
    """

    front_end: str
    smooth: bool
    rows: tuple[Handled, ...]

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Operations that are evaluated locally in float64."""
        return tuple(row.operation for row in self.rows if row.how == FALLBACK)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """Aligned columns: operation, calls, how it is handled, where."""
        kind = "smooth: its small radii share their work" if self.smooth else "piecewise: kinks are followed exactly"
        if self.front_end == "dispatch":
            kind = "only what moves is listed; kinks are followed exactly"
        table = [("operation", "calls", "handled by", "in")]
        table += [(row.operation, str(row.calls), row.how, ", ".join(row.modules)) for row in self.rows]
        widths = [max(len(line[column]) for line in table) for column in range(3)]
        lines = ["  ".join([*(line[c].ljust(widths[c]) for c in range(3)), line[3]]).rstrip() for line in table]
        return "\n".join([f"followed by: {self.front_end}; {kind}", "", *lines])


FALLBACK = "no rule: local evaluation in float64"
_STILL = "does not depend on the parameters"
_DECISION = "decision of the forward, taken as at w"


@renamed(METHOD)
def operators(objective: Objective, *, method: FrontEnd | None = None) -> Operators:
    """Tell how difference propagation handles every operation of a model and its loss.

    Args:
        objective: the model, its loss and data; the first batch is followed.
        method: ``"graph"``, ``"dispatch"``, or ``None`` for the first that follows the model.

    Returns:
        An :class:`Operators`; print it.

    Raises:
        UntraceableError, MissingRuleError: what cannot be followed, naming the module and the operation.
        NarrowLossError: the loss does not run in float64, in which values at w are taken.
        NondeterministicLossError: two evaluations at w differ.

    Cost: a few forwards and one direction of the first batch: seconds, so that nothing is kept of a call that is ended.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> data = [(torch.ones(2, 4), torch.tensor([0, 2]))]
        >>> found = fs.operators(fs.Objective(model, data, criterion=torch.nn.functional.cross_entropy))
        >>> [(row.operation, row.how) for row in found.rows][1]
        ('aten.relu.default', 'exact rule, kinks included')
    """
    first = checked_objective(objective).on(0)
    with DifferenceEvaluator(first, front_end=method, gate=False) as evaluator:
        unperturbed_loss(evaluator.replica)
        directions = Directions(first, 1)
        choice = evaluator.choose(directions, _TRIED)
        evaluator.derivatives(directions, [0], _TRIED)
        program, handling = evaluator.program, evaluator.handling
        seen = evaluator.seen
    if program is None:
        handled = [(str(target), _how(target, str(target), True, handling.fallbacks, handling.frozen)) for target in seen]
        rows = tuple(Handled(name, calls, (), how) for (name, how), calls in zip(handled, seen.values(), strict=True))
        return Operators(choice.name, False, rows)
    counts: Counter[tuple[str, str]] = Counter()
    modules: dict[tuple[str, str], dict[str, None]] = {}
    for step in program.steps:
        if not hasattr(step.target, "_schema"):
            continue
        name = str(step.target)
        key = (name, _how(step.target, name, step.moves, handling.fallbacks, handling.frozen))
        counts[key] += 1
        modules.setdefault(key, {})[step.module.rpartition("(")[2].rstrip(")") if "(" in step.module else "loss"] = None
    rows = tuple(Handled(name, calls, tuple(modules[name, how]), how) for (name, how), calls in counts.items())
    return Operators(choice.name, program.smooth, rows)


def _how(target: Any, name: str, moves: bool, fallbacks: dict[str, int], frozen: dict[str, int]) -> str:
    if not moves:
        return _STILL
    if name in frozen:
        return _DECISION
    if name in fallbacks or target not in RULES:
        return FALLBACK
    if target in STRUCTURE:
        return "linear: lanes take the same way"
    return "exact rule, kinks included" if target in PIECEWISE else "exact rule"
