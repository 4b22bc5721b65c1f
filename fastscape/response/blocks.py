"""Blocks of directions of one call of ``fs.responses``, taken from its journal where they are there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from fastscape._keeping import patience
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator, PathName
from fastscape.evaluation.trial import PathChoice
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.response.halving import Halving
from fastscape.runs.anytime import Anytime
from fastscape.runs.journal import Journal
from fastscape.runs.plan import Plan, identity, plain_data, versions
from fastscape.runs.units import Evaluate, Here, Unit, Value, Workers, blocks_of, decode

_PLAN = "plan"
_LARGEST = 4  # directions of a block of differences: rounds begin with few, and the last block of a bank is evaluated whole
Made = Callable[[Plan, Evaluate, Callable[[], int | None], Journal | None], Workers]


class Evaluated(NamedTuple):
    """Even and odd responses ``[K, N]``, L(w), directions at a time where memory ran out, who evaluated how often, and flags.

    ``run``: how the work ended; of work that did not come to its end the first directions are there.
    """

    even: Array
    odd: Array
    base: float
    lanes: int | None
    meta: Mapping[str, Any]
    elsewhere: int
    notes: tuple[str, ...]
    run: Anytime


def in_units(choice: PathChoice) -> PathChoice:
    """A path with as many directions at a time as a unit has: a power of two, which only a shortage of memory changes."""
    if choice.name in get_args(PathName):
        return choice
    return PathChoice.of(vars(choice) | {"chunk": 1 << (min(choice.chunk, _LARGEST).bit_length() - 1)})


def here(_plan: Plan, evaluate: Evaluate, _lanes: object, _journal: object) -> Workers:
    """This process evaluates all blocks."""
    return Here(evaluate)


def block_of(unit: Unit, plan: Plan, count: int) -> range:
    """The directions of a block; the last may have fewer."""
    size = plan.ways[0].unit
    return range(unit.block * size, min((unit.block + 1) * size, count))


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
    made: Made,
) -> Evaluated:
    """Responses along all directions, in blocks as the evaluator has chosen.

    ``made``: of the plan, what evaluates a block, and the journal, those who evaluate them.
    """
    assert evaluator.choice is not None
    count, halving = len(directions), Halving()

    def of(unit: Unit) -> range:
        return block_of(unit, plan, count)

    def evaluate(unit: Unit) -> bytes:
        return halving(evaluator, directions, of(unit), radii.tolist())

    work: Evaluate = evaluate
    if journal is not None:
        journal.follow(lambda _unit: plan, lambda unit, value: value.even.shape == (len(radii), len(of(unit))))
        journal.write(_PLAN, plan.to_dict())
        work = journal.recording(evaluate, lambda: halving.lanes)
    workers = made(plan, work, lambda: halving.lanes, journal)
    units, columns, run = [Unit(0, 0, 0, block) for block in blocks_of(count, plan.ways[0].unit)], dict[Unit, Value](), Anytime()

    def known(_error: Exception | None = None) -> bool:
        return units[0] in columns

    def evaluate_all() -> None:
        for unit, data in workers.map(units, math.inf):
            columns[unit] = decode(data)
            if progress is not None:
                progress(sum(len(of(done)) for done in columns), count)

    try:
        with run.ends(known, errors=known):
            patience.at_once(evaluate_all)
    finally:
        if journal is not None:
            journal.close()
    ordered = [columns[unit] for unit in itertools.takewhile(columns.__contains__, units)]
    even, odd = (np.concatenate([column[part] for column in ordered], axis=1) for part in (0, 1))
    notes = () if journal is None else (*journal.left_out, *filter(None, (journal.note,)))
    return Evaluated(even, odd, ordered[0].base, halving.lanes, workers.meta, getattr(workers, "evaluations", 0), notes, run)
