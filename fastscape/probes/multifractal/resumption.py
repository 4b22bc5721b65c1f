"""The multifractal probe and its journal: what a folder says of a run, what it holds, and the result of that alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fastscape.probes.multifractal.description import AnalysisSettings
from fastscape.probes.multifractal.evaluated import Track
from fastscape.probes.multifractal.result import MultifractalResult, TrajectoryResult
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.multifractal.units import Point, settings_of
from fastscape.reports import storage
from fastscape.runs.folder import MANIFEST
from fastscape.runs.journal import Journal
from fastscape.runs.plan import Plan, identity, versions
from fastscape.runs.provenance import provenance
from fastscape.runs.units import Unit, Value

UNFINISHED = "unfinished"
LACKS = "the journal lacks"


def begun(folder: str | Path, kind: str, points: Sequence[Point], probe: ProbeSettings) -> Journal:
    """The journal of a run, new or to be gone on with.

    Raises:
        ValueError: the folder is of another run, and what differs.
    """
    journal = Journal(folder)
    about = {
        "kind": kind,
        "checkpoints": [point.name for point in points],
        "steps": [point.step for point in points],
        "settings": settings_of(probe),
        "identities": [identity(point.objective()) for point in points],
        "versions": {name: value for name, value in versions().items() if name != "instructions"},
        "created": provenance()["created"],
    }
    names = ("checkpoints",) if kind == TrajectoryResult.kind else ()
    journal.begin(about, ("kind", *names, "settings", "identities", "versions"))
    return journal


def state_file(journal: Journal, place: int) -> Path:
    """File of what was found out about a checkpoint when it was first visited: a result without directions."""
    return journal.folder / f"point.{place}.npz"


def save_state(journal: Journal, place: int, track: Track, settings: AnalysisSettings) -> str:
    """Write it; where that fails the units wait for it, and the answer says so."""
    try:
        track.bare(settings).save(state_file(journal, place))
    except OSError as error:
        journal.hold(place)
        return f"{LACKS} what was evaluated of {track.name}: {error}"
    journal.release(place)
    return ""


def states(journal: Journal) -> dict[int, MultifractalResult]:
    """What is known of the checkpoints that were visited, by their index; a damaged file is left out, and counted."""
    found: dict[int, MultifractalResult] = {}
    journal.damaged = 0
    for place in range(len(journal.manifest["checkpoints"])):
        file = state_file(journal, place)
        if file.exists():
            try:
                found[place] = cast(MultifractalResult, storage.read(file))
            except storage.NewerFileError:
                raise
            except ValueError:
                journal.damaged += 1
    return found


def fill(journal: Journal, tracks: Mapping[int, Track]) -> None:
    """Give every checkpoint the units that the journal has of it; what does not fit is left to be evaluated again."""

    def fits(unit: Unit, value: Value) -> bool:
        track = tracks.get(unit.point)
        way = None if track is None or track.plan is None else track.plan.way(unit.group)
        if track is None or way is None or unit.bank >= len(track.columns) or value.even.shape != (len(track.radii), way.unit):
            return False
        track.columns[unit.bank].unit = way.unit
        track.columns[unit.bank].add(unit.block, value)
        return True

    journal.follow(lambda unit: tracks[unit.point].plan if unit.point in tracks else None, fits)


def merge(folder: str | Path) -> MultifractalResult | TrajectoryResult:
    """The result of all units in a journal, also of an unfinished run; no model is needed.

    Args:
        folder: ``resume=`` of :func:`fastscape.multifractal` or :func:`fastscape.trajectory`, by however many processes.

    Returns:
        What the run itself would return if it ended now; of a trajectory, the checkpoints that were begun.

    Raises:
        ValueError: a folder without a journal, one of another function, whose result needs the model, or one without a unit.
    """
    if not (Path(folder) / MANIFEST).is_file():
        raise ValueError(f"folder must be the journal of a run (resume=), got {str(folder)!r}, which has no {MANIFEST}")
    journal = Journal(folder)
    kind = journal.manifest.get("kind")
    if kind not in (MultifractalResult.kind, TrajectoryResult.kind):
        raise ValueError(
            f"folder must be the journal of a multifractal probe, got {str(folder)!r}, of {kind}, whose result needs the model; "
            f"call fs.{kind}(..., resume={str(folder)!r}) again"
        )
    tracks: dict[int, Track] = {}
    known = states(journal)
    for place, state in known.items():
        tracks[place] = Track(state.name, state.step, state.probe, state.meta["limit"])
        tracks[place].adopt(state)
    fill(journal, tracks)
    if not journal.done:
        why = "; ".join(journal.left_out) or "of a run that ended before its first"
        raise ValueError(f"folder must hold at least one unit, got {str(folder)!r}, {why}")
    for words in journal.left_out:
        next(iter(tracks.values())).note(words)
    reasons = {place: _reason(track) for place, track in tracks.items()}
    points = [track.result(known[place].analysis.settings, reasons[place], analysed=True) for place, track in tracks.items()]
    whole = len(tracks) == len(journal.manifest["checkpoints"]) and UNFINISHED not in reasons.values()
    run = provenance() | {
        "stop_reason": "all directions done" if whole else UNFINISHED,
        "run_seconds": journal.seconds,
        "budget": None,
        "target": None,
    }
    finished = tuple(dataclasses.replace(point, meta=point.meta | run | _threads(point)) for point in points)
    return finished[0] if kind == MultifractalResult.kind else TrajectoryResult(finished, run)


def _reason(track: Track) -> str:
    wanted = math.inf if track.limit is None else track.limit
    return "all directions done" if min(track.counts) >= wanted else UNFINISHED


def _threads(point: MultifractalResult) -> dict[str, Any]:
    return {"threads": Plan.of(point).threads}
