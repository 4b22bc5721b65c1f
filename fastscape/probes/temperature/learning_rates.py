"""Learning rates of SGD by parameter, with what momentum makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fastscape._checks import real, shown
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.probes.spectrum.stability import Optimizer
from fastscape.probes.temperature.gradient_noise import effective_rate
from fastscape.runs.checkpoints import read_optimizer
from fastscape.runs.optimizers import OptimizerState


def effective_rates(
    objective: Objective, learning_rate: float | None, momentum: float, optimizer: Optimizer | str | Path | None
) -> tuple[Array, tuple[str, ...]]:
    r"""Effective rate :math:`\eta (1 - damp) / (1 - \mu)` of every probed parameter ``[tensors]``, and remarks.

    Empty for an optimizer that does not step along the gradient, with the reason as the remark.

    Raises:
        ValueError: neither or both of learning rate and optimizer, values outside their range, or parameters that do not fit.
        TypeError: no optimizer.
    """
    if (learning_rate is None) == (optimizer is None):
        got = "neither" if learning_rate is None else "both"
        raise ValueError(f"pass learning_rate= (and momentum=) or optimizer=, got {got}; the temperature is proportional to it")
    if optimizer is None:
        assert learning_rate is not None
        rate = _checked(learning_rate, momentum)
        return np.full(len(objective.names), rate), ()
    if not (real(momentum) and momentum == 0):
        raise ValueError(f"momentum must be left out when optimizer= is given, got {shown(momentum)}")
    found = OptimizerState.of(
        read_optimizer(Path(optimizer)) if isinstance(optimizer, (str, Path)) else optimizer, objective.model
    )
    if found.name != "SGD":
        words = f"no temperature for {found.name}: it scales gradients by their history, and T assumes steps along the gradient"
        return np.empty(0), (words,)
    by_name = found.by_parameter(objective.model)
    missing = [name for name in objective.names if name not in by_name]
    if missing:
        raise ValueError(
            f"optimizer must hold every probed parameter, got none for {missing[0]!r}; leave it out with params= of the objective"
        )
    rates = [_of_group(by_name[name][0]) for name in objective.names]
    remarks = ("weight decay is not in the loss whose temperature this is",) if _decays(by_name, objective) else ()
    return np.array(rates), remarks + found.remarks


def _of_group(group: Any) -> float:
    return _checked(float(group["lr"]), float(group["momentum"]), float(group["dampening"]))


def _decays(by_name: Any, objective: Objective) -> bool:
    return any(float(by_name[name][0].get("weight_decay", 0.0)) for name in objective.names)


def _checked(learning_rate: float, momentum: float, dampening: float = 0.0) -> float:
    if not (real(learning_rate) and 0 <= learning_rate < math.inf):
        raise ValueError(f"learning_rate must be finite and not negative, got {shown(learning_rate)}")
    if not (real(momentum) and 0 <= momentum < 1):
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}; with 1 or more the noise adds up without bound")
    return effective_rate(learning_rate, momentum, dampening)
