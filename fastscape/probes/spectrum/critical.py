r"""Critical curvatures of optimizers: where gradient descent on a quadratic stops converging.

Every optimizer here moves, along an eigenvector of the (preconditioned) Hessian with eigenvalue a, by the linear recursion

.. math:: v' = \beta v + c\, a\, w, \qquad w' = \rho w - \eta\,(p\, a\, w + q\, v')

of momentum beta, decay :math:`\rho = 1 - \eta \cdot wd` (decoupled), and optimizer-specific c, p, q. Its largest characteristic
root leaves the unit circle at -1, which gives the critical curvature in closed form (:func:`critical_curvature`).

Source: Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability" (2021), appendix B, and
"Adaptive gradient methods at the edge of stability" (2022), section 3; Jury's conditions for second-order recursions.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def critical_curvature(
    learning_rate: float,
    momentum: float = 0.0,
    *,
    accumulation: float = 1.0,
    direct: float = 0.0,
    through: float = 1.0,
    decay: float = 0.0,
) -> float:
    r"""Curvature a above which v' = beta v + c a w, w' = rho w - eta (p a w + q v') diverges.

    .. math:: a^* = \frac{(1 + \beta)(2 - \eta\, wd)}{\eta\,\bigl(p (1 + \beta) + q c\bigr)}

    Args:
        learning_rate: eta; 0 gives infinity.
        momentum: beta in [0, 1).
        accumulation: c, the weight of a gradient in the momentum buffer.
        direct: p, the weight of the gradient in the step.
        through: q, the weight of the momentum buffer in the step.
        decay: wd, the decoupled weight decay, below 2 / eta.

    Raises:
        ValueError: a value outside its range.
    """
    checked_learning_rate(learning_rate)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}; with 1 or more no curvature is stable")
    if not 0 <= learning_rate * decay < 2:
        raise ValueError(f"decay must lie in [0, 2 / learning_rate), got {decay} with learning_rate {learning_rate}")
    gain = direct * (1 + momentum) + through * accumulation
    if not gain > 0:
        raise ValueError(f"direct (1 + momentum) + through accumulation must be positive, got {gain}")
    if learning_rate == 0:
        return math.inf
    return (1 + momentum) * (2 - learning_rate * decay) / (learning_rate * gain)


def gradient_descent(learning_rate: float) -> float:
    r"""Critical sharpness of gradient descent, :math:`2 / \eta`.

    Raises:
        ValueError: a negative or infinite learning rate.
    """
    return critical_curvature(learning_rate)


def polyak(learning_rate: float, momentum: float, dampening: float = 0.0) -> float:
    r"""Critical sharpness of heavy-ball momentum, :math:`(2 + 2\beta) / (\eta (1 - damp))`.

    The recursion is PyTorch's: v <- beta v + (1 - damp) g, w <- w - eta v.

    Raises:
        ValueError: a learning rate, momentum or dampening outside its range.
    """
    if not dampening < 1:
        raise ValueError(f"dampening must be below 1, got {dampening}; with 1 no gradient enters the momentum")
    return critical_curvature(learning_rate, momentum, accumulation=1 - dampening)


def nesterov(learning_rate: float, momentum: float) -> float:
    r"""Critical sharpness of Nesterov momentum as PyTorch does it, :math:`(2 + 2\beta) / (\eta (1 + 2\beta))`.

    The recursion is v <- beta v + g, w <- w - eta (g + beta v).

    Raises:
        ValueError: a learning rate or momentum outside its range.
    """
    return critical_curvature(learning_rate, momentum, direct=1.0, through=momentum)


def averaged_momentum(learning_rate: float, momentum: float, decay: float = 0.0) -> float:
    r"""Critical sharpness of an exponential moving average of gradients, :math:`(2 + 2\beta) / (\eta (1 - \beta))`.

    The recursion is v <- beta v + (1 - beta) g, w <- (1 - eta wd) w - eta v, with the factor 2 + 2 beta replaced by
    (1 + beta)(2 - eta wd) under decoupled weight decay. For :math:`\lambda_1(P^{-1/2} H P^{-1/2})` instead of the sharpness it is
    that of Adam, AdamW, RAdam and Adamax, whose P is taken as constant over the steps that an instability needs to grow.

    Raises:
        ValueError: a learning rate, momentum or decay outside its range.
    """
    return critical_curvature(learning_rate, momentum, accumulation=1 - momentum, decay=decay)


def nadam(learning_rate: float, beta: float, current: float, following: float, product: float, decay: float = 0.0) -> float:
    r"""Critical preconditioned sharpness of NAdam at one step of its momentum schedule.

    .. math:: p = \frac{1 - \mu_t}{1 - \prod_{s \le t} \mu_s}, \quad q = \frac{\mu_{t+1}}{1 - \prod_{s \le t+1} \mu_s},
              \quad c = 1 - \beta

    Args:
        learning_rate: eta.
        beta: of the average of the gradients.
        current, following: mu_t and mu_{t+1}.
        product: of mu_1 ... mu_t.
        decay: decoupled weight decay.

    Raises:
        ValueError: a value outside its range.
    """
    return critical_curvature(
        learning_rate,
        beta,
        accumulation=1 - beta,
        direct=(1 - current) / (1 - product),
        through=following / (1 - product * following),
        decay=decay,
    )


def checked_learning_rate(value: float) -> float:
    """``value`` if it is finite and not negative, or a ValueError."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"learning_rate must be finite and not negative, got {value}")
    return value


def relation(ratio: float, error: float = 0.0) -> str:
    """In words where a ratio of curvature to critical curvature lies; it says nothing about minibatch dynamics.

    The ratio of a Ritz value is a lower bound; the nearest eigenvalue is at most ``error`` above it.
    """
    if math.isnan(ratio):
        return "unknown: no preconditioned sharpness"
    if ratio > 1 + EDGE:
        return "above the full-batch edge"
    if ratio >= 1 - EDGE:
        return "at the full-batch edge"
    return "at the full-batch edge or below it" if ratio + error >= 1 - EDGE else "below the full-batch edge"


def first_steps(momentum: float, startup: Callable[[int], float]) -> int:
    r"""The first step at which an adaptive optimizer's start-up is over: then its preconditioner can be taken as frozen.

    Averages that begin at zero let the preconditioner grow as ``startup(t)``, :math:`1 - \beta_1^t` for Adam. The step is the
    least t, at least 10, after which it grows by less than a tenth within the memory of the momentum, :math:`1 / (1 - \beta)`,
    and within ten steps: 20 for Adam with beta_1 = 0.9, 38 for RMSprop, 48 for Adagrad.

    Args:
        momentum: beta of the recursion, in [0, 1).
        startup: positive and increasing, of steps t >= 1.
    """
    memory = max(LEAST, math.ceil(1 / (1 - momentum)))
    step = LEAST
    while startup(step + memory) > (1 + UNSETTLED) * startup(step):
        step += 1
    return step


LEAST = 10  # gradients that an average of squares is taken of
UNSETTLED = 0.1  # growth of the preconditioner within the memory of the momentum
EDGE = 0.05  # full-batch training hovers within a few percent of the threshold (Cohen et al. 2021, figure 2)
