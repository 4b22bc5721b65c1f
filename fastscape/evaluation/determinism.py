"""Refuse a loss that is not a function: evaluate twice, and say why when the two differ."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastscape._replica import Replica
from fastscape._state import preserved_rng


class NondeterministicLossError(RuntimeError):
    """The loss of the same weights on the same data is not the same number twice."""


def unperturbed_loss(replica: Replica) -> float:
    """L(w), after checking that two evaluations agree to the last bit.

    Raises:
        NondeterministicLossError: naming the difference and its cause: random numbers drawn in the forward (dropout,
            shuffling or noise inside the loss), buffers that the forward changes (batch-norm statistics), or an
            operation without a deterministic implementation.
    """
    before = replica.buffers()
    first, second = _evaluate(replica), _evaluate(replica)
    if first == second or (math.isnan(first) and math.isnan(second)):
        return first
    raise NondeterministicLossError(
        f"the loss must be deterministic, got {first!r} and then {second!r} at the same weights and data: "
        + _cause(replica, before)
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
