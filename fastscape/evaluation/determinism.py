"""Refuse a loss that is not a function: evaluate twice, and say why when the two differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastscape._checks import first_line
from fastscape._state import exact_arithmetic, preserved_rng, torch_generators
from fastscape.evaluation.agreement import DtypeDependentLossError, check_same_function
from fastscape.evaluation.arithmetic import traced_loss
from fastscape.objective.examination import never_evaluated, replica_of
from fastscape.objective.replica import Replica

_PIECE = 1 << 16  # numbers displaced at a time
_DRAWS = 4  # at displaced weights: two of a small effect round to the same number now and then
_DISPLACED = (1e-2, 1e-4, 1e-6)  # of the size of each weight; the next where the model refuses such weights


class NondeterministicLossError(RuntimeError):
    """The loss of the same weights on the same data is not the same number twice."""


class NarrowLossError(ValueError):
    """The loss runs in the model's own dtype, and not in a wider one."""


def unperturbed_loss(replica: Replica) -> float:
    """L(w), after checking that two evaluations agree to the last bit, and that the loss follows the weights.

    Between the two the weights are displaced, once for an objective and dtype, and the loss of the first batch is compared with
    that of another copy of the model, which has never seen other weights. A loss that puts the model into training mode, where
    it draws random numbers, is refused though the two agree: samples of boxes or of layers may be all there is at w alone.

    Raises:
        NarrowLossError: the replica is wider than the model, and the loss runs in the model's own dtype alone: it holds tensors
            that are neither parameters, buffers nor data, such as those of a second network, or casts, or has a kernel of one
            dtype.
        NondeterministicLossError: naming the difference and its cause: random numbers drawn in the forward (dropout,
            shuffling or noise inside the loss), buffers that the forward changes (batch-norm statistics), an
            operation without a deterministic implementation, or something kept from an evaluation at other weights.
        DtypeDependentLossError: another function than in the objective's own dtype (:mod:`fastscape.evaluation.agreement`).
    """
    before, few = replica.buffers(), 2 / len(replica.batches)  # two evaluations of the first batch
    kept = _training(replica)  # a copy that does not go into evaluation mode
    try:
        compared = check_same_function(replica)
        first = _evaluate(replica)
        left = torch_generators()
    except DtypeDependentLossError:
        raise
    except Exception as error:
        if _runs_as_it_is(replica) and not _runs(replica):  # what fails once is no matter of the dtype
            raise _narrow(replica, error) from error
        raise
    pair = _displaced_pair(replica)
    second = _evaluate(replica)
    drawn = left != torch_generators()  # a forward that seeds itself leaves the same behind every time
    replica.gate = 2 + few * (compared + (pair is not None))
    if first == second or (math.isnan(first) and math.isnan(second)):
        if pair is not None:
            if drawn:
                _check_draws(replica)
            _check_follows(replica, *pair)
        if drawn and (trained := _put_into_training(replica, kept)):
            raise NondeterministicLossError(
                f"the loss must be free of random numbers, and puts {trained} into training mode, where it draws some (samples "
                "of boxes, dropout, skipped layers); two evaluations agree here, those at other weights need not: seed them "
                "inside the loss, torch.manual_seed(0), or leave the model in evaluation mode"
            )
        replica.objective.known["follows the weights", replica.dtype] = True
        return first
    raise NondeterministicLossError(
        f"the loss must be deterministic, got {first!r} and then {second!r} at the same weights and data: "
        + _cause(replica, before)
    )


def _runs_as_it_is(replica: Replica) -> bool:
    """Whether the loss runs in the model's own dtype, where the replica's is another."""
    objective = replica.objective
    if objective.dtype == replica.dtype:
        return False
    with exact_arithmetic(objective.dtype):
        return _runs(replica_of(objective, objective.dtype))


def _runs(replica: Replica) -> bool:
    try:
        _evaluate(replica)
    except Exception:  # the model's own failure, the first of which is reported
        return False
    return True


def _narrow(replica: Replica, error: Exception) -> NarrowLossError:
    wanted, own = (str(dtype).removeprefix("torch.") for dtype in (replica.dtype, replica.objective.dtype))
    return NarrowLossError(
        f"the loss must run in {wanted} for this, and runs in {own} alone, got {type(error).__name__}: {first_line(error)[:160]}"
        f"; cast what model and loss hold beside parameters, buffers and data (of a second network: "
        f"teacher(x.to({own})).to(x.dtype), or make it a part of the model)"
        + ("; or precision='float32'" if own == "float32" else "")
    )


def _evaluate(replica: Replica) -> float:
    replica.reset()
    return float(replica.loss())


def _displaced_pair(replica: Replica) -> tuple[float, float] | None:
    """Losses of the first batch at displaced weights, by this replica and by a fresh one; ``None`` where it was done before."""
    known, key = replica.objective.known, ("follows the weights", replica.dtype)
    if key in known:
        return None
    fresh = never_evaluated(replica)
    losses: tuple[float, float] | None = None
    for share in _DISPLACED:
        step = max(share, 8 * torch.finfo(replica.dtype).eps)
        replica.evaluations += 2
        found = _displaced_loss(replica, step, lambda copy: float(copy.batch_loss(0)[0]))
        other = None if found is None else _displaced_loss(fresh, step, traced_loss)
        if found is not None and other is not None:
            losses = found, other
            break
    return losses


def _displaced_loss(replica: Replica, step: float, evaluate: Callable[[Replica], float]) -> float | None:
    """The loss at displaced weights; ``None`` where the model refuses them, as one whose scale falls below zero."""
    _displace(replica, step)
    try:
        return evaluate(replica)
    except Exception as error:
        try:
            evaluate(replica)
        except Exception:
            return None
        raise error from None  # of a model that raises now and then


def _displace(replica: Replica, step: float) -> None:
    dtype = torch.promote_types(replica.dtype, torch.float32)

    def write(_: int, slot: Tensor, base: Tensor) -> None:
        slot.copy_(base)
        if not slot.numel():
            return
        mean = torch.linalg.vector_norm(base, 1, dtype=torch.promote_types(dtype, base.dtype)).to(dtype) / slot.numel()
        rows = slot if slot.ndim else slot[None]
        each = rows[0].numel()
        count = max(1, _PIECE // each)
        for start in range(0, len(rows), count):  # in pieces: no copies of large tensors beside the weights
            piece = rows[start : start + count]
            wide, first = piece.to(dtype), start * each
            wave = torch.arange(first, first + wide.numel(), dtype=torch.float32, device=wide.device).sin_()
            piece.copy_(wide + wave.reshape(wide.shape).to(dtype) * (wide.abs() + mean) * step)

    replica.fill(write)


def _check_draws(replica: Replica) -> None:
    """Raise where random numbers that have no effect at w have one at displaced weights, by one copy and to the last bit."""
    for share in _DISPLACED:
        step = max(share, 8 * torch.finfo(replica.dtype).eps)
        replica.evaluations += _DRAWS
        losses = [_displaced_loss(replica, step, lambda copy: float(copy.batch_loss(0)[0])) for _ in range(_DRAWS)]
        if None in losses:
            continue
        other = next((loss for loss in losses if loss != losses[0]), losses[0])
        if other != losses[0] and not all(map(math.isnan, losses)):  # type: ignore[arg-type]
            raise NondeterministicLossError(
                f"the loss must be deterministic, got {losses[0]!r} and then {other!r} at the same displaced weights and "
                "data, where it draws random numbers that have no effect at the weights themselves; seed them inside the loss, "
                "torch.manual_seed(0)"
            )
        break
    replica.reset()


def _check_follows(replica: Replica, found: float, fresh: float) -> None:
    """Raise where a copy of the model that was evaluated before gives another loss than one that was not."""
    if found == fresh or not (math.isfinite(found) and math.isfinite(fresh)):
        return
    replica.reset()
    moved = abs(fresh - float(replica.batch_loss(0)[0]))
    if abs(found - fresh) <= max(0.01 * moved, 64 * torch.finfo(replica.dtype).eps * max(abs(found), abs(fresh))):
        return
    raise NondeterministicLossError(
        f"the loss must be a function of the present weights, got {found!r} at displaced weights where a copy of the model that "
        f"was never evaluated elsewhere gives {fresh!r}: the model or the loss keeps state from an evaluation at earlier "
        "weights (weights cast or normalised once, an attribute filled on first use, a cache by address or version); "
        "compute it from the parameters in every forward"
    )


def _training(replica: Replica) -> set[str]:
    """Parts of the model in training mode, but for layers of running statistics, which draw nothing."""
    norms = set(replica.objective.tracking)
    return {name for name, module in replica.module.model.named_modules() if module.training and name not in norms}


def _put_into_training(replica: Replica, before: set[str]) -> str:
    """What the loss has put into training mode, in words."""
    found = sorted(_training(replica) - before)
    return "" if not found else repr(found[0]) if found[0] else "the model"


def _cause(replica: Replica, before: dict[str, torch.Tensor]) -> str:
    values = []
    for _ in range(2):
        with preserved_rng():
            torch.manual_seed(0)
            values.append(_evaluate(replica))
    model = replica.module.model
    if values[0] == values[1]:
        active = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.training
        ]
        where = f"dropout is active in {active[0]!r}" if active else "F.dropout without training=self.training, noise,"
        return (
            f"the forward draws random numbers ({where} or shuffling inside loss=); make the evaluation-mode forward and "
            "the loss free of randomness"
        )
    after = replica.buffers()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if changed:
        return (
            f"the forward changes the buffer {changed[0]!r} in evaluation mode; use batch_norm='batch' for batch "
            "statistics instead of keeping a layer in training mode"
        )
    enabled, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        _evaluate(replica)
    except RuntimeError as error:
        return f"an operation is nondeterministic ({error})"
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    return "the loss or the model keeps state between calls (a counter, an iterator over other data); make it a function"
