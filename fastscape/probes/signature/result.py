"""The geometric signature of a checkpoint: one object of every quantity with its interval, and warnings on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.probes.signature.quantities import PARTS, QUANTITIES, Contribution, kind_of
from fastscape.probes.signature.rules import DEFAULT_RULES, Rule, Verdict
from fastscape.reports.document import Document
from fastscape.runs.provenance import Provenance, provenance

_SHARED = (
    "model",
    "parameters",
    "samples",
    "batches",
    "batch_norm",
    "batch_norm_asked",
    "statistics",
    "weight_fingerprint",
    "data_fingerprint",
    "device",
    "dtype",
)
_TRAINING = ("difficulty",)  # results of a whole training: the weights of its start are not those of the others


@dataclass(frozen=True)
class Signature(Document):
    r"""The geometry of the loss at one checkpoint, every quantity with its interval, ``None`` if it was not measured.

    What each quantity means, and its unit, is in :data:`fastscape.probes.signature.quantities.QUANTITIES`; tables show it. The
    interval of an eigenvalue is its residual's bound; that of ``normalized_sharpness`` reaches from the lower bound that was
    found to the bound of the quadratic model, which is not a bound of the loss; other intervals are of 95 %.

    Attributes:
        name, step: of the checkpoint.
        loss, accuracy: on the probed data; ``None`` where no result has them.
        lambda_max, lambda_min, spectral_norm, trace, mean_curvature, effective_rank, directional_variance: of the Hessian.
        preconditioned_sharpness, stability_ratio: of an optimizer.
        critical_sharpness: at which its step stops contracting.
        lambda_c, eta_c: of :func:`fastscape.critical_sharpness`, along its next step or the negative gradient.
        roughness, roughness_worst, roughness_detrended, roughness_noise: of slices, squared loss.
        normalized_sharpness: NS_eps.
        barrier, barrier_end, barrier_max: on the line to another solution.
        temperature, temperature_h, noise_scale: of minibatch noise.
        difficulty, difficulty_dimensionless: O(w0).
        m_tau, h_mean, h_std, c2: of the multifractal probe; M_tau on the orders that its directions support.
        missing: why a field is ``None``, by its name.
        deterministic: whether the loss passed the determinism gate.
        meta: fingerprints, model, data, seconds, evaluations, stop reason; ``sources`` has seed, settings and the law of the
            directions by kind of result.
        notes: flags, in words.
    """

    kind: ClassVar[str] = "signature"

    name: str
    step: int | None
    loss: float | None
    accuracy: float | None
    lambda_max: Estimate | None
    lambda_min: Estimate | None
    spectral_norm: Estimate | None
    trace: Estimate | None
    mean_curvature: Estimate | None
    effective_rank: Estimate | None
    directional_variance: Estimate | None
    preconditioned_sharpness: Estimate | None
    stability_ratio: Estimate | None
    critical_sharpness: float | None
    roughness: Estimate | None
    roughness_worst: Estimate | None
    roughness_detrended: Estimate | None
    roughness_noise: Estimate | None
    normalized_sharpness: Estimate | None
    barrier: Estimate | None
    barrier_end: Estimate | None
    barrier_max: Estimate | None
    temperature: Estimate | None
    temperature_h: Estimate | None
    noise_scale: Estimate | None
    difficulty: Estimate | None
    difficulty_dimensionless: Estimate | None
    m_tau: Estimate | None
    h_mean: Estimate | None
    missing: dict[str, str]
    deterministic: bool
    meta: Provenance
    notes: tuple[str, ...] = ()
    h_std: Estimate | None = None
    c2: Estimate | None = None
    lambda_c: Estimate | None = field(default=None, metadata={"later": True})
    eta_c: Estimate | None = field(default=None, metadata={"later": True})

    @classmethod
    def of(
        cls,
        *results: Any,
        name: str | None = None,
        step: int | None = None,
        missing: Mapping[str, str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Signature:
        """Assemble from results of one checkpoint, whatever there is.

        Args:
            results: of :func:`fastscape.spectrum` (of the Hessian), ``slice1d``, ``sharpness``, ``critical_sharpness``,
                ``barrier``, ``temperature``, ``difficulty``, :func:`fastscape.multifractal`; at most one of each kind.
            name, step: of the checkpoint; default those of the results.
            missing: reasons why a field or all fields of a kind of result (``"slice"``) are missing.
            meta: what else to keep.

        Raises:
            TypeError: something that is no such result.
            ValueError: two results of a kind, or results of different weights; both are named. A barrier must have one
                end in common with the others; a difficulty is of a whole training and is not compared.
        """
        given = _by_kind(results)
        _check_weights(given)
        reasons = dict(missing or {})
        unknown = [key for key in reasons if key not in QUANTITIES and key not in PARTS]
        if unknown:
            raise ValueError(f"missing must name fields or kinds of results, got {unknown[0]!r}")
        parts = [PARTS[kind](result) for kind, result in given.items()]
        found = {key: estimate for part in parts for key, estimate in part.fields.items()}
        plain = {key: value for part in reversed(parts) for key, value in part.plain.items()}
        local = [result for kind, result in given.items() if kind not in _TRAINING]
        return cls(
            name=name or next((result.name for result in local if result.name != "model"), "model"),
            step=step if step is not None else next((result.step for result in local if result.step is not None), None),
            loss=plain.get("loss"),
            accuracy=plain.get("accuracy"),
            critical_sharpness=plain.get("critical_sharpness"),
            **{key: found.get(key) for key in QUANTITIES},
            missing=_reasons(found, parts, reasons),
            deterministic=not any(result.meta.get("deterministic") is False for result in given.values()),
            meta=_meta(given) | dict(meta or {}),
            notes=_notes(given),
        )

    def __repr__(self) -> str:
        known = sum(getattr(self, name) is not None for name in QUANTITIES)
        return f"<Signature {self.name!r}: {known} of {len(QUANTITIES)} quantities>"

    def warnings(self, rules: Sequence[Rule] = DEFAULT_RULES, reference: Iterable[Signature] = ()) -> tuple[Verdict, ...]:
        """Outcome of every rule.

        Args:
            rules: the default ones, or others; see :class:`fastscape.probes.signature.rules.Rule`.
            reference: other signatures, e.g. of other seeds at the same step, of which thresholds may be quantiles.

        Raises:
            ValueError: a rule on a field that signatures do not have.
        """
        others = tuple(reference)
        return tuple(rule.verdict(self, others) for rule in rules)

    def table1(self) -> dict[str, Estimate | None]:
        """The three numbers of the source's table 1: early trace tr(H), top curvature lambda_max, roughness R."""
        return {"trace": self.trace, "lambda_max": self.lambda_max, "roughness": self.roughness}

    def as_vector(self, names: Sequence[str] | None = None) -> Array:
        """Values of fields ``[len(names)]``, NaN where missing; all quantities in order for ``None``.

        Raises:
            ValueError: a name that is no quantity.
        """
        wanted = list(QUANTITIES) if names is None else list(names)
        unknown = [name for name in wanted if name not in QUANTITIES]
        if unknown:
            raise ValueError(f"names must be quantities of a signature, got {unknown[0]!r}; there are {', '.join(QUANTITIES)}")
        found = [getattr(self, name) for name in wanted]
        return np.array([math.nan if estimate is None else estimate.value for estimate in found])

    def meaning(self, name: str) -> str:
        """Definition of a quantity with its unit, or why it is missing."""
        if name in self.missing:
            return f"missing: {self.missing[name]}"
        quantity = QUANTITIES[name]
        return f"{quantity.formula} [{quantity.unit}]" if quantity.unit else quantity.formula


def _by_kind(results: Sequence[Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for result in results:
        kind = kind_of(result)
        if kind not in PARTS:
            raise TypeError(f"results must be of {', '.join(PARTS)}, got {type(result).__name__}")
        if kind in given:
            raise ValueError(f"results must hold one {kind}, got {given[kind].name!r} and {result.name!r}")
        given[kind] = result
    return {kind: given[kind] for kind in PARTS if kind in given}


def _check_weights(given: Mapping[str, Any]) -> None:
    known = [(kind, found) for kind, result in given.items() if kind not in _TRAINING and (found := _weights(result.meta))]
    known.sort(key=lambda item: len(item[1]))  # a barrier, which is of two states, goes with either
    for kind, found in known[1:]:
        if not found & known[0][1]:
            named = ((key, "/".join(sorted(print_[:8] for print_ in prints))) for key, prints in (known[0], (kind, found)))
            words = " and ".join(f"{key} {given[key].name!r} ({prints})" for key, prints in named)
            raise ValueError(f"results must be of the same weights, got {words}; pass those of one checkpoint")


def _weights(meta: Mapping[str, Any]) -> set[str]:
    """Fingerprints of the weights that a result is of; a barrier is of both its ends."""
    ends = meta.get("weight_fingerprints")
    return set(ends.values()) if ends else {meta["weight_fingerprint"]} if meta.get("weight_fingerprint") else set()


def _reasons(found: Mapping[str, Any], parts: Sequence[Contribution], reasons: Mapping[str, str]) -> dict[str, str]:
    """Reason why each absent field is absent: what the caller says, what its result says, or that there was no such result."""
    reported = {key: reason for part in parts for key, reason in part.missing.items()}
    absent = [key for key in QUANTITIES if key not in found]
    by_source = {key: reasons.get(QUANTITIES[key].source, f"no {QUANTITIES[key].source} result was given") for key in absent}
    return {key: reasons.get(key) or reported.get(key) or by_source[key] for key in absent}


def _meta(given: Mapping[str, Any]) -> Provenance:
    meta: dict[str, Any] = {}
    for kind, result in given.items():
        if kind not in _TRAINING:
            meta |= {key: result.meta[key] for key in _SHARED if key not in meta and result.meta.get(key) is not None}
    seconds = [result.meta.get("seconds") for result in given.values()]
    evaluations = [result.meta.get("evaluations") for result in given.values()]
    meta["seconds"] = math.fsum(value for value in seconds if value is not None)
    meta["evaluations"] = sum(int(value) for value in evaluations if value is not None)
    meta["sources"] = {
        kind: {key: result.meta[key] for key in ("seed", "settings", "law", "stop_reason", "created") if key in result.meta}
        for kind, result in given.items()
    }
    return meta | provenance()


def _notes(given: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    prints = {result.meta.get("data_fingerprint") for kind, result in given.items() if kind not in _TRAINING} - {None}
    if len(prints) > 1:
        notes.append("the results are of different data: numbers of one and the other need not agree")
    notes += [f"{kind}: {flag}" for kind, result in given.items() for flag in getattr(result, "flags", result.notes)]
    modes: dict[str, list[str]] = {}
    for kind, result in given.items():
        if kind not in _TRAINING and result.meta.get("statistics"):
            modes.setdefault(str(result.meta.get("batch_norm")), []).append(kind)
    if len(modes) > 1:
        words = "; ".join(f"{mode}: {', '.join(kinds)}" for mode, kinds in modes.items())
        notes.append(f"statistics of batch norm differ between the results ({words})")
    ended = [kind for kind, result in given.items() if result.meta.get("stop_reason") == "interrupted"]
    if ended:
        notes.append(f"interrupted: {', '.join(ended)}")
    return tuple(notes)


assert set(QUANTITIES) <= {field.name for field in fields(Signature)}
