"""Everything of a run that was chosen by timing, by free memory or by measuring noise: with it a run repeats bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastscape._version import __version__
from fastscape.objective.objective import Objective

WORDS = {
    "weight_fingerprint": "weights",
    "data_fingerprint": "data",
    "names": "parameters",
    "batch_weights": "batch weights",
}  # for the entries of an identity whose names are not words
_SAME_LOSS = 1e-5  # relative difference of L(w) above which a loss function is another


@dataclass(frozen=True)
class Way:
    """How one group of batches of a checkpoint is evaluated.

    Attributes:
        group: index of the batch where every bank of directions has its own; 0 where all evaluate all.
        precision: the arithmetic.
        path: the evaluation path.
        unit: directions evaluated at a time; block j is always [j unit, (j + 1) unit).
        parts: radii at a time, where differences are propagated.
        shared: radii whose responses follow from two of them, where differences are propagated.
        reason: for the arithmetic, in words.
        noise: what was measured of the rounding noise.
    """

    group: int
    precision: str
    path: str
    unit: int
    parts: int | None
    shared: tuple[float, ...] | None
    reason: str
    noise: Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Plan:
    """Choices of a run at one checkpoint; ``plan=`` repeats them, without trials, and gives the same bits.

    It is in ``meta["plan"]`` of a :class:`fastscape.MultifractalResult` and in ``plan`` of :class:`fastscape.Responses`.

    Attributes:
        ways: how each group of batches was evaluated: precision, path, directions and radii at a time, noise.
        threads: of torch.
        radii: in units of ||d||.
        settings: of directions and scales, without their number.
        identity: of the weights, the data and what is probed, as fingerprints.
        loss: L(w).
        versions: of fastscape and torch, and the instructions that torch uses: with others the last bits may be others.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> objective = fs.Objective(model, [(torch.ones(2, 4), torch.tensor([0, 2]))],
        ...                          criterion=torch.nn.functional.cross_entropy)
        >>> directions = fs.Directions(objective, count=4)
        >>> first = fs.responses(objective, directions, [1e-3, 1e-2])
        >>> again = fs.responses(objective, directions, [1e-3, 1e-2], plan=first.plan)
        >>> bool((again.even == first.even).all())
        True
    """

    ways: tuple[Way, ...]
    threads: int
    radii: tuple[float, ...]
    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    loss: float
    versions: Mapping[str, str]

    def __repr__(self) -> str:
        ways = ", ".join(f"{way.precision} by {way.path}, {way.unit} at a time" for way in self.ways)
        return f"Plan({ways or 'nothing evaluated'}; threads={self.threads})"

    def way(self, group: int) -> Way | None:
        """How a group of batches was evaluated, if it was."""
        return next((way for way in self.ways if way.group == group), None)

    def label(self, group: int) -> str:
        """Digest of what the bytes of a group's units depend on beside the model, the data and the settings; empty without a way.

        It is of everything that two machines may choose or find otherwise, but for the noise, which is in no unit.
        """
        way = self.way(group)
        if way is None:
            return ""
        chosen = {name: value for name, value in vars(way).items() if name not in ("reason", "noise")}
        content = [chosen, self.threads, self.radii, self.loss, dict(self.versions)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def having(self, way: Way) -> Plan:
        """The same with one more way."""
        return dataclasses.replace(self, ways=tuple(sorted((*self.ways, way), key=lambda each: each.group)))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data, for ``meta``; ``Plan.of`` reads it."""
        data: dict[str, Any] = plain_data(self)
        return data

    @classmethod
    def made(cls, objective: Objective, settings: Mapping[str, Any], radii: Iterable[float], loss: float) -> Plan:
        """A plan of this objective and process, to which ways are added."""
        steps = tuple(float(radius) for radius in radii)
        return cls((), torch.get_num_threads(), steps, plain_data(settings), identity(objective), loss, versions())

    @classmethod
    def of(cls, value: object) -> Plan:
        """A plan, that of a result, or one from :meth:`to_dict`.

        Raises:
            TypeError: something else.
            ValueError: a result that was saved before results had plans.
        """
        if isinstance(value, cls):
            return value
        held = getattr(value, "plan", None)
        if isinstance(held, cls):
            return held
        meta = getattr(value, "meta", None)
        if isinstance(meta, Mapping):
            value = meta.get("plan")
            if value is None:
                raise ValueError("plan must be in the result, got one without meta['plan'], saved before there were any or empty")
        if not (isinstance(value, Mapping) and {field.name for field in dataclasses.fields(cls)} <= value.keys()):
            raise TypeError(
                f"plan must be a fastscape.Plan or a result, got {type(value).__name__}; pass an earlier result of the same run"
            )
        ways = tuple(_way(way) for way in value["ways"])
        radii = tuple(float(radius) for radius in value["radii"])
        return cls(**{**value, "ways": ways, "radii": radii, "loss": float(value["loss"])})

    def check(self, objective: Objective, settings: Mapping[str, Any]) -> None:
        """Refuse another objective or other settings.

        Raises:
            ValueError: naming what differs.
        """
        found = identity(objective) | {"settings": plain_data(settings)}
        self._refuse(differences({**self.identity, "settings": self.settings}, found))

    def check_loss(self, loss: float) -> None:
        """Refuse another loss function, by L(w).

        Raises:
            ValueError: it differs.
        """
        self._refuse(["loss function"] if other_loss(self.loss, loss) else [])

    def _refuse(self, different: Sequence[str]) -> None:
        if different:
            raise ValueError(
                f"plan must be of the same measurement, got other {', '.join(different)}; leave it out to choose anew"
            )


def same_as_planned(name: str, asked: object, planned: str) -> None:
    """Raise a ValueError where an argument asks for other than a plan says."""
    if asked not in (None, planned):
        raise ValueError(f"{name} must be that of the plan, {planned!r}, got {asked!r}; leave one of them out")


def differences(then: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Words for the entries of ``found`` that ``then`` has otherwise."""
    return [WORDS.get(name, name) for name, value in found.items() if then.get(name) != value]


def other_loss(then: float, found: float) -> bool:
    """Whether two values of L(w), made by other versions or machines perhaps, are of two loss functions."""
    return not math.isnan(then) and not math.isclose(then, found, rel_tol=_SAME_LOSS)


def identity(objective: Objective) -> dict[str, Any]:
    """Identity of what is measured, as plain data: of weights, data, parameters and statistics."""
    return {
        "weight_fingerprint": objective.weight_fingerprint(),
        "data_fingerprint": objective.data_fingerprint(),
        "names": list(objective.names),
        "batch_weights": list(objective.batch_weights),
        "batch_norm": objective.batch_norm,
        "dtype": str(objective.dtype),
    }


def versions() -> dict[str, str]:
    """What else the last bits depend on."""
    return {
        "fastscape": __version__,
        "torch": str(torch.__version__),
        "instructions": str(torch.backends.cpu.get_cpu_capability()),
    }


def plain_data(value: Any) -> Any:
    """JSON data that equals itself after a file: dataclasses as mappings, tuples as lists, NumPy's numbers as Python's."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=np.generic.item))


def _way(data: Mapping[str, Any]) -> Way:
    shared = data["shared"]
    return Way(**{**data, "shared": None if shared is None else tuple(float(radius) for radius in shared)})
