"""Refuse a loss that is not a function: evaluate twice, and say why when the two differ."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastscape._checks import first_line
from fastscape._replica import Replica
from fastscape._state import exact_arithmetic, preserved_rng


class NondeterministicLossError(RuntimeError):
    """The loss of the same weights on the same data is not the same number twice."""


class NarrowLossError(ValueError):
    """The loss runs in the model's own dtype, and not in a wider one."""


def unperturbed_loss(replica: Replica) -> float:
    """L(w), after checking that two evaluations agree to the last bit.

    Raises:
        NarrowLossError: the replica is wider than the model, and the loss runs in the model's own dtype alone: it holds tensors
            that are neither parameters, buffers nor data, such as those of a second network, or casts, or has a kernel of one
            dtype.
        NondeterministicLossError: naming the difference and its cause: random numbers drawn in the forward (dropout,
            shuffling or noise inside the loss), buffers that the forward changes (batch-norm statistics), or an
            operation without a deterministic implementation.
    """
    before = replica.buffers()
    try:
        first, second = _evaluate(replica), _evaluate(replica)
    except Exception as error:
        if _runs_as_it_is(replica):
            raise _narrow(replica, error) from error
        raise
    if first == second or (math.isnan(first) and math.isnan(second)):
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
    try:
        with exact_arithmetic(objective.dtype):
            _evaluate(objective.replica(objective.dtype))
    except Exception:  # the model's own failure, of which the first is told
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
