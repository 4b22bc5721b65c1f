"""Findings of the first evaluation of an objective: what the forward writes into, and whether the loss is a mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscape._checks import first_line
from fastscape._state import exact_arithmetic
from fastscape._warnings import filtered_warnings
from fastscape.objective.batches import Batch, cast, placed
from fastscape.objective.criteria import is_known_mean
from fastscape.objective.definition import Definition
from fastscape.objective.on_use import unfit
from fastscape.objective.replica import Replica, same_bits
from fastscape.objective.sharded_replica import ShardedReplica
from fastscape.objective.sharding import Sharding
from fastscape.objective.streamed import SeenReplica, StillReplica, StreamedReplica
from fastscape.objective.structures import arrays_of, leaves, map_tensors, tensors_of

LARGE = 8 << 20  # bytes of parameters from which copies of them are avoided
_SAME = 1e-3  # relative difference between losses that are one up to rounding, in float32 and wider


@dataclass(frozen=True)
class Findings:
    """Findings of the first evaluation.

    Attributes:
        rewritten: names of the parameters that the forward writes into.
        remarks: sentences for the results.
        whole: why the parameters must all be there in a forward, and cannot be made as it uses them; empty where they can, and
            for small models, of which that is not asked.
    """

    rewritten: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()
    whole: str = ""


def replica_of(objective: Definition, dtype: torch.dtype) -> Replica:
    """A private copy of an objective's model and data in ``dtype``, which writes into nothing of the user's.

    A sharded model is evaluated in place, between :meth:`fastscape.objective.sharding.Sharding.held` and its end.
    """
    if objective.sharding is not None:
        return ShardedReplica(objective, dtype)
    return Replica(objective, dtype, findings(objective).rewritten)


def still_replica(objective: Definition, dtype: torch.dtype) -> Replica:
    """A replica for evaluations at w alone, which holds no weights where that is worth it.

    One that is about to write into the user's tensors raises a :class:`fastscape.objective.write_guard.SharedWriteError`.
    """
    return StillReplica(objective, dtype) if streams(objective) else replica_of(objective, dtype)


def streamed_replica(objective: Definition, dtype: torch.dtype) -> Replica:
    """A replica whose parameters are made as the forward uses them.

    Raises:
        ValueError: they cannot; says why.
    """
    why = whole(objective)
    if why:
        raise ValueError(f"method must be 'loop' for this model, got 'stream', which makes parameters as they are used: {why}")
    return StreamedReplica(objective, dtype)


def streams(objective: Definition) -> bool:
    """Whether parameters of a model are made as they are used where nothing else was asked for, which gives the same bits."""
    return is_large(objective) and not whole(objective)


def never_evaluated(replica: Replica) -> Replica:
    """Another copy of what a replica is of, which holds no weights where that is worth it."""
    return StreamedReplica(replica.objective, replica.dtype) if streams(replica.objective) else replica.another()


def is_large(objective: Definition) -> bool:
    """Whether copies of the model's parameters are worth avoiding."""
    return objective.sharding is None and sum(tensor.nbytes for tensor in objective.model.parameters()) >= LARGE


def whole(objective: Definition) -> str:
    """Why the parameters of a model cannot be made as its forward uses them; empty where they can."""
    if objective.sharding is not None:
        return "it is sharded"
    found = findings(objective)
    if found.rewritten:
        return f"its forward writes into the parameter {min(found.rewritten)!r}"
    if found.whole or is_large(objective):
        return found.whole
    key = "made on use", objective.dtype
    if key not in objective.known:
        with filtered_warnings(), exact_arithmetic(objective.dtype):
            objective.known[key] = _streamed(objective, objective.dtype)[0]
    why: str = objective.known[key]
    return why


def forget(objective: Definition) -> None:
    """Examine the objective again: its forward does otherwise than at the weights of the first time."""
    objective.known.pop(Findings, None)


def findings(objective: Definition) -> Findings:
    """Findings of the first evaluation of an objective; made once for it and all that is derived from it.

    Raises:
        ValueError: the loss of a batch is a sum over its samples.
    """
    if Findings not in objective.known:
        objective.known[Findings] = examine(objective)
    found: Findings = objective.known[Findings]
    return found


def examine(objective: Definition) -> Findings:
    """Evaluate an objective on a copy of its model that shares nothing, and look.

    Batches are all evaluated where parameters would be shared with the user's model, and otherwise the first alone.

    Raises:
        ValueError: the loss of a batch is a sum over its samples.
    """
    if objective.sharding is not None:
        return _sharded(objective, objective.sharding)
    narrow = torch.finfo(objective.dtype).bits < 32
    with filtered_warnings():  # the evaluations that give numbers repeat the model's warnings
        with exact_arithmetic(objective.dtype):
            try:
                return _seen(objective, objective.dtype)
            except (RuntimeError, NotImplementedError):  # an operation that the device has in wider dtypes alone
                if not narrow:
                    raise
        with exact_arithmetic(torch.float32):
            return _seen(objective, torch.float32)


def _seen(objective: Definition, dtype: torch.dtype) -> Findings:
    why = ""
    if is_large(objective):
        why, found = _streamed(objective, dtype)
        if found is not None:
            return found
    return _looked_at(objective, dtype, why)


def _streamed(objective: Definition, dtype: torch.dtype) -> tuple[str, Findings | None]:
    """Why parameters cannot be made on use, or what is found where they are; none of both where the forward writes into some."""
    why = unfit(objective.model)
    if why:
        return why, None
    try:
        replica = SeenReplica(objective, dtype)
        outputs = _evaluated(objective, replica)
    except Exception as error:  # whose own, an ordinary evaluation tells
        return f"{type(error).__name__}: {first_line(error)[:160]}", None
    if replica.written:
        return "", None
    return "", Findings(remarks=tuple(_growth(objective, replica, outputs)))


def _evaluated(objective: Definition, replica: Replica) -> Tensor | None:
    """The outputs on the first batch; where parameters would be shared with the user's model, all batches are evaluated."""
    shares = sum(1 for _ in objective.model.parameters()) > len(objective.names)
    outputs = None
    for index in range(len(replica.batches) if shares else 1):
        found = replica.batch_loss(index)
        outputs = found[1] if index == 0 else outputs
    return outputs


def _looked_at(objective: Definition, dtype: torch.dtype, why: str) -> Findings:
    replica = Replica(objective, dtype, None)
    replica.reset()
    held = dict(replica.module.model.named_parameters())
    versions = {name: parameter._version for name, parameter in held.items()}
    outputs = _evaluated(objective, replica)
    written = [name for name, parameter in held.items() if parameter._version != versions[name]]
    written += [name for name in held if name not in written and not same_bits(held[name], _before(objective, name, dtype))]
    remarks = [_rewriting(name, name in objective.names) for name in written]
    remarks += _growth(objective, replica, outputs)
    return Findings(frozenset(written), tuple(remarks), why)


def _sharded(objective: Definition, sharding: Sharding) -> Findings:
    """Findings of a sharded model, whose forward gets gathered copies of its weights."""
    with exact_arithmetic(objective.dtype), sharding.held(objective.names):
        replica = ShardedReplica(objective, objective.dtype)
        remarks = _growth(objective, replica, replica.batch_loss(0)[1])
    if objective.tracking:
        remarks.append(f"a sharded model is evaluated by running statistics ({', '.join(objective.tracking[:3])})")
    return Findings(frozenset(), tuple(remarks))


def _before(objective: Definition, name: str, dtype: torch.dtype) -> Tensor:
    """A parameter as it was before the forward."""
    source = (objective.state or {}).get(name, objective.model.get_parameter(name)).detach()
    return cast(source.to(objective.dtype) if name in objective.names else source, objective.device, dtype)


def _rewriting(name: str, probed: bool) -> str:
    words = f"the forward writes into the parameter {name!r} (max_norm or clipping): the loss is that of what it writes"
    return (
        words
        + (", and gradients and Hessian products leave the writing out" if probed else "")
        + "; the model itself is left alone"
    )


# ---------------------------------------------------------------------- a mean of what?


def confirmed(objective: Definition, index: int, counts: Sequence[Callable[[Batch], float]]) -> list[bool] | None:
    """Ways to count that make the loss of a batch the mean of its halves'; ``None`` where no two differ."""
    dtype = torch.promote_types(objective.dtype, torch.float32)
    try:
        whole = placed(objective.batches[index], objective.device, dtype)
        middle = _length(whole) // 2
        halves = [_part(whole, slice(middle)), _part(whole, slice(middle, None))]
        shares = [_share(*(count(half) for half in halves)) for count in counts]
        if len(shares) > 1 and max(shares) - min(shares) < _SAME:
            return None
        with exact_arithmetic(dtype):
            replica = Replica(objective, dtype, None)
            replica.reset()
            loss = float(replica.batch_loss(index)[0])
            first, second = (_loss_of(replica, batch) for batch in halves)
    except Exception:  # the loss takes batches of this kind and size alone
        return None
    if not math.isfinite(loss + first + second) or abs(first - second) < _SAME * abs(loss):
        return None
    allowed = _SAME / 4 * abs(first - second) + 16 * torch.finfo(dtype).eps * abs(loss)
    return [abs(share * first + (1 - share) * second - loss) <= allowed for share in shares]


def _share(first: float, second: float) -> float:
    """The first half's, of both; of halves without terms the loss is not a number."""
    if not first or not second:
        raise ValueError(f"both halves of a batch must have terms, got {first} and {second}")
    return first / (first + second)


def _growth(objective: Definition, replica: Replica, outputs: Tensor | None) -> list[str]:
    """Remarks on how the loss of the first batch grows with every sample taken twice; a sum is refused.

    Raises:
        ValueError: it doubles, and the weight of the batch does not say that it is a sum.
    """
    if objective.criterion is not None and is_known_mean(objective.criterion):
        return []
    ratio, once, twice = _ratio(objective, replica, outputs)
    tolerance = max(_SAME, 16 * torch.finfo(replica.dtype).eps)
    if not math.isfinite(ratio) or abs(ratio - 1) <= tolerance:
        return []
    argument = "loss" if objective.criterion is None else "criterion"
    if abs(ratio - 2) > tolerance:
        return [f"the loss of a batch depends on its size: with every sample taken twice it is {ratio:.3g} times as large"]
    if objective.says_sum(once, twice):
        return ["the loss of a batch is a sum over its samples"]
    raise ValueError(
        f"{argument} must be a mean over the samples of a batch, got a sum: with every sample taken twice it is {ratio:.4g} "
        "times as large; divide it by the number of samples (reduction='mean'), or, if the sum of every batch is meant, pass "
        "weight=lambda batch: 1"
    )


def _ratio(objective: Definition, replica: Replica, outputs: Tensor | None) -> tuple[float, Batch, Batch]:
    """Loss of samples taken twice over their loss, those samples, and them twice; NaN where they cannot be taken twice."""
    batch = replica.batches[0]
    try:
        if objective.criterion is not None and outputs is not None:
            pair = outputs, batch[1]
            _length([*pair])
            kept, twice = batch, (_twice(batch[0]), _twice(batch[1]))
            values = [_criterion_of(replica, taken) for taken in (pair, tuple(map(_twice, pair)))]
        else:
            kept = _part(batch, slice(max(2, _length(batch) // 2)))  # the copies need no more memory than the batch
            twice = _twice(kept)
            values = [_loss_of(replica, taken) for taken in (kept, twice)]
    except Exception:  # the loss takes batches of this kind and size alone
        return math.nan, batch, batch
    return (values[1] / values[0] if values[0] else math.nan), kept, twice


def _criterion_of(replica: Replica, pair: Sequence[Any]) -> float:
    criterion = replica.criterion
    assert criterion is not None
    outputs, targets = (map_tensors(part, Tensor.clone) for part in pair)
    return float(criterion(outputs, targets))


def _loss_of(replica: Replica, batch: Batch) -> float:
    replica.reset()
    return float(replica.module.forward(map_tensors(batch, Tensor.clone))[0])


def _length(batch: Any) -> int:
    """The leading dimension that all tensors of a batch share, or the length of its lists.

    Raises:
        ValueError: they share none, or numbers stand beside them, which may count the samples.
    """
    if _is_of_lists(batch):
        return len(batch[0])
    if leaves(batch, (int, float)) or arrays_of(batch):
        raise ValueError("a batch must be of tensors alone to be cut and repeated")
    lengths = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors_of(batch)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"tensors must share their leading dimension, got {sorted(lengths)}")
    return lengths.pop()


def _is_of_lists(batch: Any) -> bool:
    """Whether every part of a batch is a list with an item per sample, as of images and their boxes."""
    if type(batch) not in (tuple, list) or not all(isinstance(part, list) and tensors_of(part) for part in batch):
        return False
    return len({len(part) for part in batch}) == 1


def _part(batch: Any, rows: slice) -> Any:
    """Some samples of a batch."""
    if _is_of_lists(batch):
        return type(batch)(part[rows] for part in batch)
    return map_tensors(batch, lambda tensor: tensor[rows])


def _twice(batch: Any) -> Any:
    """Every sample of a batch twice."""
    _length(batch)
    if _is_of_lists(batch):
        return type(batch)(part + map_tensors(part, Tensor.clone) for part in batch)
    return map_tensors(batch, lambda tensor: torch.cat([tensor, tensor]))
