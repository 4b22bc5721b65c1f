r"""The linear recursion by which an optimizer moves probed parameters: critical curvature, preconditioner, weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastscape._checks import counted
from fastscape.objective.objective import Objective
from fastscape.probes.spectrum import critical as stability
from fastscape.runs.optimizers import OptimizerState

Settings = Mapping[str, Any]
_FULL = 0.99  # of the rate that a schedule began from
_OF_SCHEDULES = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "param_names"}


@dataclass(frozen=True)
class Recursion:
    r"""An optimizer's next steps near w, with its averages of squared gradients frozen.

    The steps contract where :math:`\lambda_1(P^{-1/2} (H + \mathrm{diag}(wd)) P^{-1/2})` is below ``critical``.

    Attributes:
        optimizer: name of its class.
        learning_rate: of the group with the smallest critical curvature.
        critical: the smallest critical curvature of the groups.
        preconditioner: P, float64 ``[D]``, times the ratio of a group's critical curvature to the smallest; ``None`` where it is
            the identity. Infinite where the optimizer does not move.
        weight_decay: coupled, float64 ``[D]``, or one number for all.
        known: whether the state needed for P is there.
        notes: what was assumed.
        reason: why the ratio to ``critical`` means nothing at this step; empty where it does.
    """

    optimizer: str
    learning_rate: float
    critical: float
    preconditioner: Tensor | None
    weight_decay: Tensor | float
    known: bool
    notes: tuple[str, ...]
    reason: str = ""


def recursion(objective: Objective, optimizer: OptimizerState | torch.optim.Optimizer | Mapping[str, Any]) -> Recursion:
    r"""Read the recursion of an optimizer, restricted to the probed parameters in the order of ``objective.names``.

    Groups with other learning rates are exact for equal momentum: eta / eta_g goes into P. Where momentum or decay differ too,
    each group is scaled by its own critical curvature, exact where no Hessian entry couples the groups.

    Raises:
        TypeError, ValueError: no optimizer, one without a known recursion, one that maximizes, or one without a probed parameter.
    """
    found = OptimizerState.of(optimizer, objective.model)
    if found.name not in CRITICAL:
        raise ValueError(
            f"optimizer must be one of {', '.join(CRITICAL)}, got {found.name}; pass optimizer=None for curvature alone"
        )
    by_name = found.by_parameter(objective.model)
    missing = [name for name in objective.names if name not in by_name]
    if missing:
        raise ValueError(
            f"optimizer must hold every probed parameter, got none for {missing[0]!r}; leave it out with params= of the objective"
        )
    slots = [by_name[name] for name in objective.names]
    if any(group.get("maximize") for group, _ in slots):
        raise ValueError("optimizer must minimize the loss, got maximize=True; negate the loss of the objective instead")
    notes = _coverage(objective, by_name)
    if not found.remarks:
        notes += _foreign(found.name, [group for group, _ in slots])
    criticals = [CRITICAL[found.name](group, state) for group, state in slots]
    rates = [_rate(found.name, group, state) for group, state in slots]
    smallest = min(range(len(slots)), key=lambda index: criticals[index])
    notes += _mixture(slots, rates) + _schedule(slots)
    known = True
    diagonal: Tensor | None = None
    if found.name in PRECONDITIONER or len(set(criticals)) > 1:
        diagonal, known, words = _preconditioner(objective, found.name, slots, criticals)
        notes += words
    if found.name in PRECONDITIONER and known:
        notes += ("the preconditioner is frozen at its current averages of squared gradients",)
    return Recursion(
        optimizer=found.name,
        learning_rate=rates[smallest],
        critical=criticals[smallest],
        preconditioner=diagonal,
        weight_decay=_coupled(objective, found.name, [group for group, _ in slots]),
        known=known,
        notes=notes + found.remarks,
        reason=found.reason or _meaningless(found.name, slots, rates, known),
    )


def _meaningless(name: str, slots: list[tuple[Settings, Settings]], rates: list[float], known: bool) -> str:
    """Reason why a ratio to the critical curvature would mean nothing: no step, none yet, or one of the first."""
    if not any(rates):
        return "the learning rate is 0: no step"
    if not known:
        missing = all(state for _, state in slots)
        return "no preconditioned sharpness, " + (
            f"the averages of {name} are not in its state" if missing else f"{name} has made no step yet"
        )
    for group, state in slots:
        done = int(_number(state["step"])) if name in STARTUP and state.get("step") is not None else 0
        if done:
            beta, startup = STARTUP[name](group)
            settled = stability.first_steps(beta, startup)
            if done < settled:
                return f"step {done} of {name}: its averages begin at zero and settle by step {settled}"
    return ""


# ---------------------------------------------------------------------------------------- by optimizer


def _number(value: Any) -> float:
    return float(value)  # learning rates and steps may be tensors


def _decay(group: Settings) -> float:
    return _number(group.get("weight_decay", 0.0)) if _decoupled(group) else 0.0


def _decoupled(group: Settings) -> bool:
    return bool(group.get("decoupled_weight_decay", False))


def _sgd(group: Settings, _state: Settings) -> float:
    rate, momentum = _number(group["lr"]), _number(group["momentum"])
    if group["nesterov"]:
        return stability.nesterov(rate, momentum)
    return stability.polyak(rate, momentum, _number(group["dampening"]) if momentum else 0.0)


def _averaged(group: Settings, _state: Settings) -> float:
    return stability.averaged_momentum(_number(group["lr"]), _number(group["betas"][0]), _decay(group))


def _adamw(group: Settings, _state: Settings) -> float:
    return stability.averaged_momentum(_number(group["lr"]), _number(group["betas"][0]), _number(group["weight_decay"]))


def _nadam(group: Settings, state: Settings) -> float:
    beta = _number(group["betas"][0])
    step, product = _number(state.get("step", math.inf)), _number(state.get("mu_product", 0.0))
    current, following = (beta * (1 - 0.5 * 0.96 ** (when * group["momentum_decay"])) for when in (step, step + 1))
    return stability.nadam(_number(group["lr"]), beta, current, following, product, _decay(group))


def _rmsprop(group: Settings, _state: Settings) -> float:
    return stability.polyak(_number(group["lr"]), _number(group["momentum"]))


def _plain(group: Settings, _state: Settings) -> float:
    return stability.gradient_descent(_number(group["lr"]))


def _adagrad(group: Settings, state: Settings) -> float:
    return stability.gradient_descent(_rate("Adagrad", group, state))


def _rate(name: str, group: Settings, state: Settings) -> float:
    rate = _number(group["lr"])
    if name == "Adagrad":
        return rate / (1 + max(_number(state.get("step", 0)) - 1, 0) * _number(group["lr_decay"]))
    return rate


CRITICAL: dict[str, Callable[[Settings, Settings], float]] = {
    "SGD": _sgd,
    "Adam": _averaged,
    "AdamW": _adamw,
    "NAdam": _nadam,
    "RAdam": _averaged,
    "Adamax": _averaged,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
    "Adadelta": _plain,
}


def _second_moment(group: Settings, state: Settings) -> Tensor:
    """sqrt(v_t / (1 - beta_2^t)) + eps, with the running maximum of v under amsgrad."""
    moment = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    correction = 1 - _number(group["betas"][1]) ** _number(state["step"])
    root: Tensor = (moment.double() / correction).sqrt()
    return root + _number(group["eps"])


def _bias(group: Settings, state: Settings) -> float:
    return 1 - float(_number(group["betas"][0]) ** _number(state["step"]))


def _adam_diagonal(group: Settings, state: Settings) -> Tensor:
    return _bias(group, state) * _second_moment(group, state)


def _radam_diagonal(group: Settings, state: Settings) -> Tensor:
    """Adam's with eps before the bias correction, over the rectification; 1 - beta_1^t in its first steps."""
    beta, step = _number(group["betas"][1]), _number(state["step"])
    most = 2 / (1 - beta) - 1
    length = most - 2 * step * beta**step / (1 - beta**step)
    if length <= 5:
        return torch.full_like(state["exp_avg_sq"], _bias(group, state), dtype=torch.float64)
    rectification = math.sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))
    root: Tensor = state["exp_avg_sq"].double().sqrt() + _number(group["eps"])
    return root * (_bias(group, state) / (rectification * math.sqrt(1 - beta**step)))


def _rmsprop_diagonal(group: Settings, state: Settings) -> Tensor:
    square: Tensor = state["square_avg"].double()
    if group["centered"]:
        square = (square - state["grad_avg"].double().square()).clamp_min(0.0)
    return square.sqrt() + _number(group["eps"])


PRECONDITIONER: dict[str, Callable[[Settings, Settings], Tensor]] = {
    "Adam": _adam_diagonal,
    "AdamW": _adam_diagonal,
    "NAdam": lambda group, state: _second_moment(group, state),
    "RAdam": _radam_diagonal,
    "Adamax": lambda group, state: _bias(group, state) * state["exp_inf"].double(),
    "RMSprop": _rmsprop_diagonal,
    "Adagrad": lambda group, state: state["sum"].double().sqrt() + _number(group["eps"]),
    "Adadelta": lambda group, state: (
        (state["square_avg"].double() + group["eps"]) / (state["acc_delta"].double() + group["eps"])
    ).sqrt(),
}


AVERAGES = {"RMSprop": "square_avg", "Adadelta": "square_avg", "Adagrad": "sum", "Adamax": "exp_inf"}  # else exp_avg_sq


def _momentum_startup(group: Settings) -> tuple[float, Callable[[int], float]]:
    beta = _number(group["betas"][0])
    return beta, lambda step: float(1 - beta**step)


STARTUP: dict[str, Callable[[Settings], tuple[float, Callable[[int], float]]]] = {  # beta, and how P grows with the steps
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax"), _momentum_startup),
    "RMSprop": lambda group: (
        _number(group["momentum"]),
        lambda step: math.sqrt(1 - _number(group["alpha"]) ** step),
    ),
    "Adagrad": lambda _group: (0.0, lambda step: math.sqrt(step)),
    "Adadelta": lambda _group: (0.0, lambda _step: 1.0),  # both averages begin at zero, and their ratio is P
}


# ---------------------------------------------------------------------------------------- all together


def _preconditioner(
    objective: Objective, name: str, slots: list[tuple[Settings, Settings]], criticals: list[float]
) -> tuple[Tensor | None, bool, tuple[str, ...]]:
    """P as one vector, whether the optimizer has made a step, and what was left out."""
    smallest, pieces, silent = min(criticals), list[Tensor](), list[str]()
    for parameter, tensor, (group, state), critical in zip(
        objective.names, objective.base.values(), slots, criticals, strict=True
    ):
        factor = critical / smallest if math.isfinite(smallest) else 1.0
        if name not in PRECONDITIONER:
            diagonal = torch.ones(tensor.shape, dtype=torch.float64)
        elif not state or not _number(state.get("step", 1)):
            silent.append(parameter)
            factor, diagonal = math.inf, torch.ones(tensor.shape, dtype=torch.float64)
        elif (average := AVERAGES.get(name, "exp_avg_sq")) not in state:  # kept by an optimizer around this one
            lacking = (
                f"the state of {parameter!r} holds {', '.join(map(str, state))} and not {name}'s {average!r}: no preconditioner, "
                "only the raw sharpness; pass the optimizer that keeps it (of a SAM: its base_optimizer)"
            )
            return None, False, (lacking,)
        else:
            diagonal = PRECONDITIONER[name](group, state).cpu()
            _check_positive(diagonal, parameter)
        pieces.append((factor * diagonal).flatten())
    if len(silent) == len(slots):
        return None, False, (f"{name} has made no step yet: no preconditioner, only the raw sharpness",)
    words = (f"{counted(len(silent), 'parameter')} without state ({silent[0]} ...) taken as not moved",) if silent else ()
    return torch.cat(pieces).to(objective.device), True, words


def _check_positive(diagonal: Tensor, parameter: str) -> None:
    if not bool((diagonal > 0).all()):
        raise ValueError(
            f"optimizer must have a positive preconditioner, got {float(diagonal.min())} in {parameter!r}; use a positive eps, "
            "or average squared gradients over a step with a gradient"
        )


def _coupled(objective: Objective, name: str, groups: list[Settings]) -> Tensor | float:
    """Weight decay that enters as a gradient: one number where all groups have the same."""
    decays = [0.0 if name == "AdamW" or _decoupled(group) else _number(group.get("weight_decay", 0.0)) for group in groups]
    if len(set(decays)) == 1:
        return decays[0]
    sizes = [tensor.numel() for tensor in objective.base.values()]
    values = [torch.full((size,), decay, dtype=torch.float64) for size, decay in zip(sizes, decays, strict=True)]
    return torch.cat(values).to(objective.device)


def _coverage(objective: Objective, by_name: Mapping[str, Any]) -> tuple[str, ...]:
    others = len(set(by_name) - set(objective.names))
    if not others:
        return ()
    return (f"{counted(others, 'parameter')} of the optimizer not probed: the sharpness is a lower bound of that of all",)


def _foreign(name: str, groups: list[Settings]) -> tuple[str, ...]:
    """A note on settings that are not of the class: those of an optimizer derived from it, or around it."""
    own = set(getattr(torch.optim, name)([torch.zeros(1, requires_grad=True)]).param_groups[0]) | _OF_SCHEDULES
    others = sorted({str(key) for group in groups for key, value in group.items() if key not in own and _is_number(value)})
    if not others:
        return ()
    return (
        f"{name} has no {', '.join(others)}: the edge is that of plain {name}, not of an optimizer derived from it or around it "
        "(SAM's is lower)",
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mixture(slots: list[tuple[Settings, Settings]], rates: list[float]) -> tuple[str, ...]:
    others = {tuple(str(group.get(key)) for key in ("momentum", "betas", "dampening", "nesterov")) for group, _ in slots}
    if len(others) > 1:
        return ("groups with other momentum are scaled by their own critical curvature: exact where no curvature couples them",)
    if len(set(rates)) > 1:
        return (f"{len(set(rates))} learning rates: their ratios to the one shown are part of the preconditioner",)
    return ()


def _schedule(slots: list[tuple[Settings, Settings]]) -> tuple[str, ...]:
    """A remark where a schedule is below the rate that it began from; a state alone does not tell whether it rises or falls."""
    begun = [(_number(group["lr"]), _number(group["initial_lr"])) for group, _ in slots if group.get("initial_lr")]
    if not any(rate < _FULL * first for rate, first in begun):
        return ()
    rate, first = min(begun, key=lambda pair: pair[0] / pair[1])
    share = f"{rate / first:.2g} of its schedule's {first:g}"
    return (f"the learning rate, {rate:g}, is {share}: where that is a warm-up the ratio is not that of training",)
