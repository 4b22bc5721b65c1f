"""Blocks of directions of one call of ``fs.responses``, taken from its journal where they are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.runs.journal import Journal
from fastscape.runs.plan import Plan, identity, plain_data, versions
from fastscape.runs.units import Evaluate, Here, Unit, Value, blocks_of, decode, encode

_PLAN = "plan"


def journal_of(folder: str | Path, objective: Objective, settings: dict[str, Any]) -> Journal:
    """The journal of a call, new or to be gone on with.

    Raises:
        ValueError: it is of another call, and what differs.
    """
    journal = Journal(folder)
    which = {name: value for name, value in versions().items() if name != "instructions"}
    about = {"kind": "responses", "identity": identity(objective), "settings": plain_data(settings), "versions": which}
    journal.begin(about, tuple(about))
    return journal


def planned_in(journal: Journal) -> Plan | None:
    """The plan of the call that began a journal, if it came so far."""
    found = journal.read(_PLAN)
    return None if found is None else Plan.of(found)


def loss_at(evaluator: Evaluator | DifferenceEvaluator, directions: Directions) -> float:
    """L(w), by an evaluator that has chosen; a forward where losses are subtracted."""
    if isinstance(evaluator, DifferenceEvaluator):
        return evaluator.base
    return float(evaluator.losses(directions, (0,), [0.0])[0, 0])


def evaluated(
    evaluator: Evaluator | DifferenceEvaluator,
    directions: Directions,
    radii: Array,
    journal: Journal | None,
    plan: Plan,
    progress: Callable[[int, int], None] | None,
) -> tuple[Array, Array, float]:
    """Even and odd responses ``[K, N]`` along all directions, in blocks as the evaluator has chosen, and L(w)."""
    assert evaluator.choice is not None
    size, count = evaluator.choice.chunk, len(directions)

    def of(unit: Unit) -> range:
        return range(unit.block * size, min((unit.block + 1) * size, count))

    def evaluate(unit: Unit) -> bytes:
        even, odd, base = evaluator.responses(directions, of(unit), radii.tolist())
        return encode(even, odd, base[0])

    work: Evaluate = evaluate
    if journal is not None:
        journal.keep(lambda unit, value: value.even.shape == (len(radii), len(of(unit))))
        journal.write(_PLAN, plan.to_dict())
        work = journal.recording(evaluate)
    columns: list[Value] = []
    try:
        for unit, data in Here(work).map([Unit(0, 0, 0, block) for block in blocks_of(count, size)]):
            columns.append(decode(data))
            if progress is not None:
                progress(of(unit).stop, count)
    finally:
        if journal is not None:
            journal.close()
    even, odd = (np.concatenate([column[part] for column in columns], axis=1) for part in (0, 1))
    return even, odd, columns[0].base
