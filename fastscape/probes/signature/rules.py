r"""Early warnings: rules on measured quantities that fire, do not, or cannot tell.

A condition compares a 95 % interval with a threshold: true where the whole interval is beyond it, false where it is on the other
side, unknown where it crosses or has no bounds. Conditions of a rule are joined by Kleene's three-valued *and*: one that is
false decides, whatever the others are.

Source of the default rules: Venkatasubramanian, "Loss landscape geometry & optimization dynamics" (2025), section 6.3, which
leaves its thresholds open; the curvature of the first is that of Cohen et al., "Gradient descent on neural networks typically
occurs at the edge of stability" (2021), and "Adaptive gradient methods at the edge of stability" (2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastscape._checks import counted, first_line, one_of
from fastscape.numerics.estimate import Estimate

Status = Literal["fired", "not fired", "inconclusive", "not applicable"]
Operator = Literal[">", ">=", "<", "<="]
Interval = tuple[float, float]
Measured = Estimate | tuple[float, Interval] | float | None  # what a condition may look at; None where it was not measured
_OPERATORS = (">", ">=", "<", "<=")
_UNKNOWN = (math.nan, math.nan)
MIN_REFERENCE = 4  # signatures that a quantile is taken of


def beyond(operator: Operator, interval: Interval, threshold: float) -> bool | None:
    """Whether an interval is wholly beyond a threshold; ``None`` where it crosses it or either is unknown (NaN)."""
    low, high = interval
    match operator:
        case ">":
            return True if low > threshold else False if high <= threshold else None
        case ">=":
            return True if low >= threshold else False if high < threshold else None
        case "<":
            return True if high < threshold else False if low >= threshold else None
        case "<=":
            return True if high <= threshold else False if low > threshold else None


def conjunction(truths: Sequence[bool | None]) -> bool | None:
    """Kleene's *and*: false if any is false, else unknown if any is unknown, else true."""
    if any(truth is False for truth in truths):
        return False
    return None if any(truth is None for truth in truths) else True


@dataclass(frozen=True)
class Check:
    """One condition, evaluated.

    Attributes:
        label: of the quantity.
        operator: of the comparison.
        holds: true, false, or ``None`` where it cannot be told.
        measured: whether there was a number to look at.
        value, interval, threshold: what was compared, in the quantity's units; NaN where there is none.
        reason: why it cannot be told; empty where it can.
    """

    label: str
    operator: str
    holds: bool | None
    measured: bool
    value: float
    interval: Interval
    threshold: float
    reason: str = ""

    def __str__(self) -> str:
        if not self.measured:
            return f"{self.label}: {self.reason}"
        low, high = self.interval
        bounds = "" if math.isnan(low) and math.isnan(high) else f" [{low:.3g}, {high:.3g}]"
        return f"{self.label} = {self.value:.3g}{bounds}, fires at {self.operator} {self.threshold:.3g}"


@dataclass(frozen=True)
class Condition:
    """A comparison of one quantity of a signature with a threshold.

    Attributes:
        quantity: name of a field, or a function of the signature that gives an :class:`Estimate`, ``(value, (low, high))``, an
            exactly known number, or ``None`` where it was not measured.
        operator: ``">"``, ``">="``, ``"<"`` or ``"<="``.
        threshold: a number in the quantity's units, the name of a field, or a function of the signature and of the reference
            signatures, which gives ``None`` where it is not known.
        label: of the quantity, for tables; default its name.
        unknown: why a threshold may be ``None``, in words.
    """

    quantity: str | Callable[[Any], Measured]
    operator: Operator
    threshold: float | str | Callable[[Any, Sequence[Any]], float | None]
    label: str = ""
    unknown: str = "the threshold is not known"

    def __post_init__(self) -> None:
        one_of("operator", self.operator, _OPERATORS)
        if not (isinstance(self.quantity, str) or callable(self.quantity)):
            raise TypeError(f"quantity must be a field's name or a function of a signature, got {self.quantity!r}")
        if isinstance(self.threshold, (int, float)) and math.isnan(self.threshold):
            raise ValueError("threshold must be a number, got nan")

    @property
    def name(self) -> str:
        """Label, or the quantity's name."""
        return self.label or (self.quantity if isinstance(self.quantity, str) else getattr(self.quantity, "__name__", "value"))

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of the signature that are compared."""
        return tuple(part for part in (self.quantity, self.threshold) if isinstance(part, str))

    def check(self, signature: Any, reference: Sequence[Any] = ()) -> Check:
        """Compare; a function that raises makes the condition unknown, not the others of a table."""
        try:
            found = _field(signature, self.quantity) if isinstance(self.quantity, str) else self.quantity(signature)
            parts = None if found is None else _parts(found)
            threshold = self._threshold(signature, reference)
        except _UnknownFieldError:
            raise
        except Exception as error:  # of a user's function
            return self._made(None, math.nan, f"the condition raised {type(error).__name__}: {first_line(error)}")
        if parts is None:
            return self._made(None, math.nan, _missing(signature, self.quantity))
        if threshold is None or math.isnan(threshold):
            return self._made(None, math.nan, self.unknown)
        return self._made(parts, threshold, "")

    def _threshold(self, signature: Any, reference: Sequence[Any]) -> float | None:
        if isinstance(self.threshold, str):
            found = _field(signature, self.threshold)
            return None if found is None else _parts(found)[0]
        return self.threshold(signature, reference) if callable(self.threshold) else float(self.threshold)

    def _made(self, parts: tuple[float, Interval] | None, threshold: float, reason: str) -> Check:
        if parts is None:
            return Check(self.name, self.operator, None, False, math.nan, _UNKNOWN, threshold, reason)
        value, interval = parts
        holds = beyond(self.operator, interval, threshold)
        if holds is None:
            bounds = math.isnan(interval[0]) and math.isnan(interval[1])
            reason = f"{self.name} has no interval" if bounds else f"the interval of {self.name} crosses {threshold:.3g}"
        return Check(self.name, self.operator, holds, True, value, interval, threshold, reason)


class _UnknownFieldError(ValueError):
    """A rule on a field that signatures do not have."""


def _field(signature: Any, name: str) -> Any:
    try:
        return getattr(signature, name)
    except AttributeError:
        raise _UnknownFieldError(f"a rule needs {name!r}, which is no field of {type(signature).__name__}") from None


def _missing(signature: Any, quantity: object) -> str:
    reasons = getattr(signature, "missing", {})
    return f"{reasons[quantity]}" if quantity in reasons else "not measured"


def _parts(found: Estimate | tuple[float, Interval] | float) -> tuple[float, Interval]:
    """Value and interval; a plain number is known exactly."""
    if isinstance(found, Estimate):
        return found.value, found.interval
    if isinstance(found, tuple):
        value, (low, high) = found
        return float(value), (float(low), float(high))
    return float(found), (float(found), float(found))


@dataclass(frozen=True)
class Verdict:
    """Outcome of a rule.

    Attributes:
        rule: its name.
        status: ``"fired"`` (every condition holds), ``"not fired"`` (one does not), ``"inconclusive"`` (an interval crosses its
            threshold, or has no bounds) or ``"not applicable"`` (something was not measured, or the rule refuses).
        value, interval, threshold: of the condition that decided, or of the first; NaN where there is none.
        advice: what to do when it fires.
        source: of the rule.
        reason: why it did not fire, or cannot tell.
        checks: every condition.
    """

    rule: str
    status: Status
    value: float
    interval: Interval
    threshold: float
    advice: str
    source: str
    reason: str
    checks: tuple[Check, ...]

    @property
    def evidence(self) -> str:
        """Every condition with its value, interval and threshold."""
        return " and ".join(str(check) for check in self.checks)

    def __str__(self) -> str:
        if self.status == "fired":
            return f"{self.rule}: fired: {self.evidence}; {self.advice} ({self.source})"
        return f"{self.rule}: {self.status}: {self.reason}"


@dataclass(frozen=True)
class Rule:
    """A warning: conditions that must all hold, and what to do then.

    Example: ``Rule("steep", Condition("lambda_max", ">", 50.0), advice="lower the learning rate", source="our runs")``.

    Attributes:
        name: in a few words.
        when: one condition, or several that must all hold.
        advice: what to do when it fires.
        source: where the rule is from.
        refuses: a function of the signature that says why the rule does not apply to it, or gives ``None``.
    """

    name: str
    when: Condition | tuple[Condition, ...]
    advice: str
    source: str = "user"
    refuses: Callable[[Any], str | None] | None = None

    def __post_init__(self) -> None:
        if not self.conditions or not all(isinstance(condition, Condition) for condition in self.conditions):
            raise TypeError(f"when must be a Condition or a tuple of them, got {self.when!r}")

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All that must hold."""
        return (self.when,) if isinstance(self.when, Condition) else tuple(self.when)

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of the signature that it looks at."""
        return tuple(name for condition in self.conditions for name in condition.needs)

    def verdict(self, signature: Any, reference: Sequence[Any] = ()) -> Verdict:
        """Evaluate on a signature.

        Args:
            signature: an object with the fields that the rule needs, ``None`` where one is missing, and their reasons in
                ``missing``.
            reference: other signatures, for thresholds that are quantiles.

        Raises:
            ValueError: a field that signatures do not have.
        """
        checks = tuple(condition.check(signature, reference) for condition in self.conditions)
        refused = None if self.refuses is None else self.refuses(signature)
        holds = conjunction([check.holds for check in checks])
        if refused is not None:
            return self._made("not applicable", checks[0], refused, checks)
        if holds is True:
            return self._made("fired", checks[0], "", checks)
        if holds is False:
            decided = next(check for check in checks if check.holds is False)
            return self._made("not fired", decided, str(decided), checks)
        absent = next((check for check in checks if not check.measured), None)
        if absent is not None:
            return self._made("not applicable", absent, f"{absent.label}: {absent.reason}", checks)
        open_ = next(check for check in checks if check.holds is None)
        return self._made("inconclusive", open_, f"{open_.reason}: {open_}", checks)

    def _made(self, status: Status, check: Check, reason: str, checks: tuple[Check, ...]) -> Verdict:
        return Verdict(self.name, status, check.value, check.interval, check.threshold, self.advice, self.source, reason, checks)


# ---------------------------------------------------------------------------------------- the default rules

_SOURCE = "Venkatasubramanian (2025), section 6.3"


def above_edge(threshold: float | None = None) -> Rule:
    r"""The curvature exceeds what the optimizer's step contracts.

    Args:
        threshold: tau for lambda_max, in loss per squared parameter; ``None`` for the critical value of the optimizer, against
            which :math:`\lambda_1(P^{-1/2}(H + wd)P^{-1/2})` is held: 2 / eta for gradient descent, 2 (1 + mu) / eta for heavy
            ball, (2 + 2 mu) / ((1 + 2 mu) eta) for Nesterov, (2 + 2 b1) / ((1 - b1) eta) for Adam.
    """
    if threshold is None:
        condition = Condition(
            "preconditioned_sharpness",
            ">",
            "critical_sharpness",
            "sharpness as the optimizer sees it",
            "the optimizer is not known: pass optimizer=, or a threshold to above_edge",
        )
        source = f"{_SOURCE}; threshold of Cohen et al. (2021, 2022)"
    else:
        condition, source = Condition("lambda_max", ">", threshold), f"{_SOURCE}; threshold of the user"
    advice = "lower the learning rate or take larger batches"
    return Rule("curvature above the edge of stability", condition, advice, source, _untrained)


def rugged_but_flat(r0: float = 10.0, quantile: float = 0.25) -> Rule:
    """Slices are rough beyond their rounding noise while the mean curvature is small.

    Args:
        r0: times the noise floor that the detrended roughness must exceed; the source leaves it open.
        quantile: of tr(H) / D over the reference signatures, at least four, below which it is small.

    Raises:
        ValueError: r0 that is not positive, or a quantile outside (0, 1).
    """
    if not (math.isfinite(r0) and r0 > 0):
        raise ValueError(f"r0 must be positive and finite, got {r0!r}")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie in (0, 1), got {quantile!r}")

    def floor(signature: Any, _reference: Sequence[Any]) -> float | None:
        noise = _field(signature, "roughness_noise")
        return None if noise is None else r0 * _parts(noise)[0]

    def small(_signature: Any, reference: Sequence[Any]) -> float | None:
        fields = [_field(other, "mean_curvature") for other in reference]
        values = [_parts(found)[0] for found in fields if found is not None]
        known = [value for value in values if math.isfinite(value)]
        return float(np.quantile(known, quantile)) if len(known) >= MIN_REFERENCE else None

    return Rule(
        "rugged while flat on average",
        (
            Condition("roughness_detrended", ">", floor, "R, detrended", unknown="the rounding noise of the slices is not known"),
            Condition(
                "mean_curvature",
                "<",
                small,
                "tr(H) / D",
                unknown=f"no reference: tr(H) / D of {counted(MIN_REFERENCE, 'other signature')} is needed to say what is small",
            ),
        ),
        "damp more: weight decay, gradient clipping",
        f"{_SOURCE}; r0 = {r0:g} and the {quantile:.0%} quantile are chosen here",
        _nondeterministic,
    )


def flat_but_isolated(sharpness: float = 1e-4, barrier: float = 1.0) -> Rule:
    """Normalised sharpness is at most ``sharpness`` while the linear barrier to another solution is at least ``barrier``.

    No upper bound of the loss itself is known: what is compared is the bound of its quadratic model, where the largest rise that
    was found does not exceed it.
    """
    return Rule(
        "flat but isolated",
        (
            Condition("normalized_sharpness", "<=", sharpness, "NS_eps, bounded in the quadratic model"),
            Condition("barrier", ">=", barrier, "B_lin"),
        ),
        "expect results to depend on the seed: report several, or average weights only along connected solutions",
        _SOURCE,
        _untrained,
    )


def _nondeterministic(signature: Any) -> str | None:
    if getattr(signature, "deterministic", None) is False:
        return "the loss is not deterministic, so that roughness would be evaluation noise"
    return _untrained(signature)


def _untrained(signature: Any) -> str | None:
    """Warnings are of training: numbers by running statistics of batch norm may be those of another function."""
    meta = getattr(signature, "meta", {})
    losses = meta.get("statistics") or {}
    if meta.get("batch_norm") == "running" and losses and losses["running"] != losses["batch"]:
        return (
            "batch norm took its running statistics, training those of the batch: pass batch_norm='batch', or none to signature"
        )
    return None


DEFAULT_RULES = (above_edge(), rugged_but_flat(), flat_but_isolated())
