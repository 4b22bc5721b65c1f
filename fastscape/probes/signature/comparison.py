"""Signatures beside each other: one table, one figure, warnings on all of them, and the rule on skip connections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import stats

from fastscape._checks import counted, listed
from fastscape.numerics.arrays import Array
from fastscape.probes.signature.quantities import QUANTITIES
from fastscape.probes.signature.result import Signature
from fastscape.probes.signature.rules import DEFAULT_RULES, Check, Rule, Status, Verdict, beyond
from fastscape.reports.document import Document
from fastscape.reports.tables import shared_flags
from fastscape.runs.provenance import Provenance, provenance

SKIP_RULE = "skip connections smooth the worst slice"
_ADVICE = "expect the architecture with skip connections to be easier to optimise"
_SOURCE = "Venkatasubramanian (2025), section 6.3: a comparison of architectures, not a statement on one model"


@dataclass(frozen=True)
class Comparison(Document):
    """Several signatures, of architectures, seeds or steps.

    Attributes:
        name, step: of the comparison; no step.
        signatures: in the order given.
        architectures: label of each signature.
        skip: architectures that have skip connections; ``None`` where that was not told.
        verdicts: of the comparison rules.
        meta: when and with what it was made.
        notes: flags, in words.
    """

    kind: ClassVar[str] = "comparison"

    name: str
    step: int | None
    signatures: tuple[Signature, ...]
    architectures: tuple[str, ...]
    skip: tuple[str, ...] | None
    verdicts: tuple[Verdict, ...]
    meta: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Comparison of {counted(len(self.signatures), 'signature')}>"

    def warnings(self, rules: Sequence[Rule] = DEFAULT_RULES) -> dict[str, tuple[Verdict, ...]]:
        """Outcome of every rule on every signature, by the signatures' labels; each has the others as reference."""
        found = {}
        for index, (label, signature) in enumerate(zip(self.labels, self.signatures, strict=True)):
            others = (*self.signatures[:index], *self.signatures[index + 1 :])
            found[label] = signature.warnings(rules, others)
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """A distinct name of each signature."""
        names = [signature.name for signature in self.signatures]
        if len(set(names)) < len(names):
            names = [f"{architecture}: {name}" for architecture, name in zip(self.architectures, names, strict=True)]
        if len(set(names)) < len(names):
            names = [f"{index}: {name}" for index, name in enumerate(names)]
        return tuple(names)

    def known(self) -> list[str]:
        """Quantities that at least one signature has."""
        return [key for key in QUANTITIES if any(getattr(signature, key) is not None for signature in self.signatures)]


def compare(
    signatures: Sequence[Signature],
    *,
    architectures: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    name: str = "comparison",
) -> Comparison:
    """Signatures beside each other, with the rule that needs more than one model.

    The rule: architectures with skip connections have a lower worst-case slice variance. It fires where the 95 % Welch interval
    of the ratio of geometric means over signatures (seeds) lies below 1.

    Args:
        signatures: two or more.
        architectures: label of each; default the class of its model.
        skip: the labels that have skip connections; ``None`` leaves the rule without an answer.
        name: for tables.

    Raises:
        TypeError: something that is no signature.
        ValueError: fewer than two, labels of another number, or ``skip`` that is no label.
    """
    given = listed("signatures", signatures, "signatures")
    wrong = next((item for item in given if not isinstance(item, Signature)), None)
    if wrong is not None:
        raise TypeError(f"signatures must be made by Signature.of or fs.signature, got {type(wrong).__name__}")
    if len(given) < 2:
        raise ValueError(f"signatures must be at least two, got {len(given)}")
    labels = tuple(str(each.meta.get("model", "?")) for each in given)
    if architectures is not None:
        labels = listed("architectures", architectures, "names")
    if len(labels) != len(given):
        raise ValueError(f"architectures must have one label per signature, got {len(labels)} for {len(given)}")
    skip = None if skip is None else listed("skip", skip, "labels")
    unknown = [label for label in skip or () if label not in labels]
    if unknown:
        raise ValueError(f"skip must be among the architectures {', '.join(sorted(set(labels)))}, got {unknown[0]!r}")
    return Comparison(
        name=name,
        step=None,
        signatures=given,
        architectures=labels,
        skip=None if skip is None else tuple(skip),
        verdicts=(_skip_verdict(given, labels, skip),),
        meta={"stop_reason": "complete", "seconds": 0.0} | provenance(),
        notes=(*_settings_differ(given), *shared_flags(given)),
    )


def _skip_verdict(signatures: Sequence[Signature], labels: Sequence[str], skip: Sequence[str] | None) -> Verdict:
    """Whether the worst slice variance is lower with skip connections than without."""
    label = "worst slice variance with skip connections over that without"

    def made(status: Status, check: Check, reason: str) -> Verdict:
        return Verdict(SKIP_RULE, status, check.value, check.interval, check.threshold, _ADVICE, _SOURCE, reason, (check,))

    def without_answer(reason: str) -> Verdict:
        return made("not applicable", Check(label, "<", None, False, math.nan, (math.nan, math.nan), 1.0, reason), reason)

    if skip is None:
        return without_answer("skip= does not say which architectures have skip connections")
    values = [math.nan if each.roughness_worst is None else each.roughness_worst.value for each in signatures]
    sides = [_logarithms(values, [(one in skip) is side for one in labels]) for side in (True, False)]
    if not all(len(side) for side in sides):
        return without_answer("slices are needed of architectures with and without skip connections")
    ratio, bounds = _ratio(sides[0], sides[1])
    holds = beyond("<", bounds, 1.0)
    if holds is None:
        few = (
            "one signature of a kind has no spread; take several seeds" if min(map(len, sides)) < 2 else "the interval crosses 1"
        )
        return made("inconclusive", Check(label, "<", None, True, ratio, bounds, 1.0, few), f"{few}: ratio {ratio:.3g}")
    check = Check(label, "<", holds, True, ratio, bounds, 1.0)
    return made("fired" if holds else "not fired", check, "" if holds else str(check))


def _logarithms(values: Sequence[float], chosen: Sequence[bool]) -> Array:
    picked = np.array([value for value, take in zip(values, chosen, strict=True) if take], dtype=np.float64)
    return np.log(picked[np.isfinite(picked) & (picked > 0)])


def _ratio(first: Array, second: Array) -> tuple[float, tuple[float, float]]:
    """Ratio of geometric means from logarithms, with Welch's 95 % interval; NaN bounds where a side has one value."""
    ratio = math.exp(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return ratio, (math.nan, math.nan)
    if not (np.ptp(first) or np.ptp(second)):
        return ratio, (ratio, ratio)
    found = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return ratio, (math.exp(min(found.low, 700.0)), math.exp(min(found.high, 700.0)))


def _settings_differ(signatures: Sequence[Signature]) -> list[str]:
    """Kinds of results that were not asked for the same thing; their numbers do not compare."""
    notes = []
    kinds = {kind for each in signatures for kind in each.meta.get("sources", {})}
    for kind in sorted(kinds):
        asked = {_asked(each.meta["sources"][kind]) for each in signatures if kind in each.meta.get("sources", {})}
        if len(asked) > 1:
            notes.append(f"the {kind} results have different settings and do not compare")
        laws = {each.meta["sources"][kind].get("law", "") for each in signatures if kind in each.meta.get("sources", {})}
        if len(laws - {""}) > 1 or (len(laws) > 1 and any(" of rank " in law for law in laws)):
            named = ", ".join(sorted(law or "not told" for law in laws))
            notes.append(f"the {kind} results are along directions of different laws ({named}) and do not compare")
    return notes


def _asked(source: Mapping[str, Any]) -> str:
    """Settings that change what a number means: not how long it took, nor whose trace was taken."""
    return repr({key: value for key, value in (source.get("settings") or {}).items() if key not in ("budget", "spectrum")})
