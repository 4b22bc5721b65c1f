"""Agreement of the processes of a call before its work: the same model, data and versions, and what they can do together."""

from __future__ import annotations

import math
import platform
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastscape._state import torch_threads
from fastscape.objective.batches import available_memory
from fastscape.objective.objective import Objective
from fastscape.ops import _native
from fastscape.runs.plan import Plan, differences, identity, other_loss, versions
from fastscape.runs.ranks import Ranks

_SAME_LOSS = 1e-6  # relative: two processors round differently, another loss function differs by more
_MUST = ("fastscape", "torch")  # versions; others may differ, and bits with them


@dataclass(frozen=True)
class Agreed:
    """What the processes of a call can do together.

    Attributes:
        memory: bytes that batched evaluation may take on each of them.
        bitwise: whether all of them compute the same bits.
    """

    memory: int
    bitwise: bool


@dataclass(frozen=True)
class _Own:
    """What one process has."""

    identity: Mapping[str, Any]
    versions: Mapping[str, str]
    loss: float
    room: int
    place: tuple[str, str]


def agree(ranks: Ranks, objective: Objective, also: Mapping[str, Any]) -> Agreed:
    """Compare what the processes hold with what rank 0 holds.

    Args:
        ranks: the processes.
        objective: of the call, in this process.
        also: what else must be the same, by the words for it.

    Raises:
        ValueError: on all of them, naming what differs and where.

    Cost: hashes of weights and data, and L(w).
    """
    threads = ranks.share("threads", torch.get_num_threads, lambda counts: counts[0])

    def own() -> _Own:
        with torch_threads(threads):
            loss = objective.loss()
        device = objective.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        kernels = _native.library.isa if _native.library.available else "none"
        made = versions() | {"device": name, "kernels": kernels}
        number = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
        place = (platform.node(), f"{device.type} {number}")
        return _Own(identity(objective) | dict(also), made, loss, available_memory(device), place)

    agreed: Agreed = ranks.share("agreed", own, _settled)
    if not agreed.bitwise and ranks.rank == 0:
        warnings.warn(
            "ranks have other processors or kernels than rank 0: the last bits may depend on who evaluates", stacklevel=2
        )
    return agreed


def confirm(plan: Plan, objective: Objective, made: Mapping[str, str]) -> None:
    """Compare what a worker of an executor has made with what the plan of the caller is of.

    Args:
        plan, objective: what there should be, and what there is.
        made: versions of the caller.

    Raises:
        ValueError: naming what differs.

    Cost: hashes of weights and data, and L(w).
    """
    words = differences(plan.identity, identity(objective))
    words += [f"version of {name}" for name in _MUST if made[name] != versions()[name]]
    if not words and other_loss(plan.loss, objective.loss()):
        words = ["loss function"]
    if words:
        raise ValueError(
            f"workers must make the objective that the caller has, got other {', '.join(words)} on {platform.node()}; check what "
            "fs.Source reads there"
        )


def _settled(found: Sequence[_Own]) -> Agreed:
    first, apart = found[0], []
    for rank, own in enumerate(found):
        words = differences(first.identity, own.identity)
        words += [f"version of {name}" for name in _MUST if own.versions[name] != first.versions[name]]
        if not words and not _close(first.loss, own.loss):
            words = ["loss function"]
        if words:
            apart.append(f"{', '.join(words)} on rank {rank}")
    if apart:
        raise ValueError(f"ranks must hold the same model and data as rank 0, got other {'; '.join(apart)}")
    shared = Counter(own.place for own in found)
    same = all(own.versions == first.versions and _bits(own.loss) == _bits(first.loss) for own in found)
    return Agreed(min(own.room // (2 * shared[own.place]) for own in found), same)


def _close(one: float, other: float) -> bool:
    return _bits(one) == _bits(other) or math.isclose(one, other, rel_tol=_SAME_LOSS) or (math.isnan(one) and math.isnan(other))


def _bits(value: float) -> str:
    return value.hex()
