"""When, with which versions and on how many threads a run was made, and of which model and data."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, NoReturn, Self, TypeVar, overload

import numpy as np
import scipy
import torch

from fastscape._version import __version__
from fastscape.objective.objective import Objective

Value = TypeVar("Value")


class _Entry(Generic[Value]):
    """An attribute that reads the entry of its name."""

    def __init__(self, default: Value) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, mapping: None, kind: type) -> Self: ...
    @overload
    def __get__(self, mapping: dict[str, Any], kind: type) -> Value: ...
    def __get__(self, mapping: dict[str, Any] | None, kind: type) -> Self | Value:
        return self if mapping is None else mapping.get(self.name, self.default)


class Provenance(dict[str, Any]):
    """How a result came about: a mapping that does not change; what most results hold can be read as attributes.

    ``meta["seed"]`` and ``meta.seed`` are the same; the attribute has a default where a result or a file of an earlier version
    holds no such entry. ``meta | {...}`` is another provenance, ``dict(meta)`` a mapping to change.

    Attributes:
        created, versions, threads: when, with which versions and on how many threads.
        model, parameters, samples, batches, weight_fingerprint, data_fingerprint, remarks: of the objective.
        device, dtype: of its weights.
        batch_norm: statistics that batch norm takes.
        seed: of the random numbers.
        settings: what was asked for.
        budget, seconds: time that was given (``None`` without a limit) and taken.
        evaluations: of the loss.
        stop_reason: ``"complete"``, ``"deadline"``, ``"interrupted"`` or ``"failed: ..."``.
        path: how it was evaluated or multiplied.
        precision, arithmetic: of the evaluations, and which function that measures.
    """

    created = _Entry("")
    versions = _Entry[Mapping[str, str]]({})
    threads = _Entry[int | None](None)
    model = _Entry("")
    parameters = _Entry[int | None](None)
    samples = _Entry[int | None](None)
    batches = _Entry[int | None](None)
    weight_fingerprint = _Entry[str | None](None)
    data_fingerprint = _Entry[str | None](None)
    remarks = _Entry[Sequence[str]](())
    device = _Entry[str | None](None)
    dtype = _Entry[str | None](None)
    batch_norm = _Entry[str | None](None)
    seed = _Entry[int | None](None)
    settings = _Entry[Mapping[str, Any]]({})
    budget = _Entry[float | None](None)
    seconds = _Entry[float | None](None)
    evaluations = _Entry[int | None](None)
    stop_reason = _Entry("")
    path = _Entry[Any](None)
    precision = _Entry[str | None](None)
    arithmetic = _Entry[str | None](None)

    def __or__(self, other: Mapping[str, Any]) -> Provenance:  # type: ignore[override]
        return Provenance({**self, **other})

    __ior__ = __or__  # type: ignore[assignment]

    def __ror__(self, other: Mapping[str, Any]) -> Provenance:  # type: ignore[override]
        return Provenance({**other, **self})

    def __reduce__(self) -> tuple[type[Provenance], tuple[dict[str, Any]]]:
        return Provenance, (dict(self),)

    def _refuse(self, *_values: object, **_entries: object) -> NoReturn:
        raise TypeError("meta does not change; write dataclasses.replace(result, meta=result.meta | {name: value})")

    __setitem__ = __delitem__ = __setattr__ = update = pop = popitem = clear = setdefault = _refuse


def provenance() -> Provenance:
    """Entries of the ``meta`` of every result on its run: ``created``, ``versions``, ``threads``."""
    return Provenance(
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "fastscape": __version__,
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "scipy": scipy.__version__,
                "python": platform.python_version(),
            },
            "threads": torch.get_num_threads(),
        }
    )


def statistics_meta(objective: Objective) -> dict[str, Any]:
    """Statistics that batch norm takes, those asked for, and where layers keep running ones, the loss by either."""
    found: dict[str, Any] = {"batch_norm": objective.batch_norm, "batch_norm_asked": objective.batch_norm_asked}
    if objective.by_batch:
        try:
            found["statistics"] = dataclasses.asdict(objective.statistics())
        except KeyboardInterrupt:  # results are made of what was evaluated, after an interrupt too
            return found
    return found


def objective_meta(objective: Objective, remarks: Sequence[str] | None = None) -> Provenance:
    """Entries of the ``meta`` of a result on the function that was probed, and :func:`provenance`.

    ``remarks``: of an objective that cannot be evaluated; by default its own.
    """
    return Provenance(
        {
            "model": type(objective.model).__name__,
            "parameters": objective.size,
            "samples": objective.samples,
            "batches": len(objective.batches),
            **statistics_meta(objective),
            "weight_fingerprint": objective.weight_fingerprint(),
            "data_fingerprint": objective.data_fingerprint(),
            "device": str(objective.device),
            "dtype": str(objective.dtype),
            "remarks": list(objective.remarks if remarks is None else remarks),
            **provenance(),
        }
    )


def remarks_and_notes(meta: Mapping[str, Any], notes: Iterable[str]) -> tuple[str, ...]:
    """Flags of a result that come before its own: the remarks on its objective and the notes of its run, each once."""
    return tuple(dict.fromkeys((*meta.get("remarks", ()), *notes)))
