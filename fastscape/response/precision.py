"""Arithmetic of the responses: float32 or float64 subtraction, or difference propagation; chosen by measuring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fastscape._checks import first_line, one_of
from fastscape._state import exact_arithmetic
from fastscape.differences.evaluator import DifferenceEvaluator, FrontEnd
from fastscape.differences.propagation import MissingRuleError
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.directions import Directions
from fastscape.evaluation.agreement import DtypeDependentLossError, check_same_function
from fastscape.evaluation.arithmetic import replica_arithmetic
from fastscape.evaluation.determinism import NarrowLossError
from fastscape.evaluation.effort import HEAVY, multiplications
from fastscape.evaluation.evaluator import Evaluator, PathName
from fastscape.evaluation.footprint import Cap, footprint
from fastscape.evaluation.influence import Influence, influence
from fastscape.evaluation.losses import DTYPES
from fastscape.evaluation.noise import known_from_zero, narrow_noise, neighbouring_noise, noise_float64, passes_gate
from fastscape.evaluation.points import Array
from fastscape.evaluation.sharded import evaluator_of
from fastscape.evaluation.streaming import streamed_bytes
from fastscape.evaluation.trial import PathChoice, Refusal, Trial, activation_bytes, timed, told
from fastscape.objective.batches import available_memory
from fastscape.objective.examination import is_large, streams
from fastscape.objective.objective import Objective
from fastscape.objective.sharding import ShardedModelError
from fastscape.runs.plan import Way

Precision = Literal["float64", "float32", "difference", "difference-bf16"]
AnyPath = PathName | FrontEnd

CALIBRATION = 4  # directions evaluated in float64 as well, to measure the noise of float32 subtraction
DIFFERENCES = 2  # directions of the calibration of difference propagation
_LEAST, _FORWARDS = 1.0, 40  # seconds, and forwards, below which trying other arithmetics does not fit
_GRADIENT = 4  # times the activations that a gradient may take of what is available
_WARM = 0.1  # seconds of a block that need not be timed again
_NEIGHBOURS = "rounding noise is measured between neighbouring weights"
SAFETY = 2.0  # times the relative error of the lanes that was measured


@dataclass(frozen=True)
class Noise:
    """Rounding noise of a set of scales.

    Attributes:
        sigma: RMS error of the even responses ``[K]``.
        calibrated: the gate's verdict on even and on odd responses ``[2, K]``, where measured against float64.
        narrow: the operation inside a float64 model that is narrower; empty if none.
        evaluations: done for the calibration beside the evaluator's own.
        how: in words, where it could not be compared with float64.
        influence: which parameters move the loss; ``None`` where a gradient takes too much memory, or the model has none.
        largest: where trust is withheld for the sake of a few responses, in words.
    """

    sigma: Array
    calibrated: NDArray[np.bool_] | None
    narrow: str
    evaluations: int
    how: str = ""
    influence: Influence | None = None
    largest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data, for a plan."""
        verdicts = None if self.calibrated is None else self.calibrated.tolist()
        found = None if self.influence is None else vars(self.influence) | {"names": list(self.influence.names)}
        return {"sigma": self.sigma.tolist(), "calibrated": verdicts, "narrow": self.narrow, "how": self.how, "influence": found}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Noise:
        """From :meth:`to_dict`; nothing was evaluated for it."""
        verdicts, found = data["calibrated"], data["influence"]
        return cls(
            np.array(data["sigma"], dtype=np.float64),
            None if verdicts is None else np.array(verdicts, dtype=np.bool_),
            data["narrow"],
            0,
            data["how"],
            None if found is None else Influence(found["share"], tuple(found["names"]), found["flat"]),
        )

    def trusted(self, even: Array, odd: Array) -> NDArray[np.bool_]:
        """The gate's verdict per scale: from the calibration, or else from the even responses ``[K, N]`` themselves."""
        if self.calibrated is not None:
            verdict: NDArray[np.bool_] = self.calibrated[0]
            return verdict
        return known_from_zero(even, odd, self.sigma, flat=self.influence is not None and self.influence.flat)

    @property
    def notes(self) -> tuple[str, ...]:
        """Flags, in words."""
        note = "" if self.influence is None else self.influence.note
        return tuple(filter(None, (note, self.largest)))


@dataclass(frozen=True)
class PrecisionChoice:
    """Which arithmetic was chosen, and why.

    Attributes:
        name: of the arithmetic.
        reason: in words.
        seconds: measured seconds per response, by arithmetic that was tried.
        path: that was measured for it, to go on with.
        evaluations: loss values that trying took.
    """

    name: Precision
    reason: str
    seconds: dict[str, float] = field(default_factory=dict)
    path: PathChoice | None = None
    evaluations: int = 0


def checked_precision(precision: str | None) -> Precision | None:
    """A precision by name, or a ValueError that lists the names."""
    one_of("precision", precision, (*get_args(Precision), None))
    return precision  # type: ignore[return-value]


def responder(
    objective: Objective,
    precision: Precision,
    method: AnyPath | PathChoice | None = None,
    memory: int | None = None,
    *,
    gate: bool = True,
    trial: float = math.inf,
) -> Evaluator | DifferenceEvaluator:
    """The evaluator of a precision."""
    if precision in DTYPES:
        return evaluator_of(objective, DTYPES[precision], method=method, memory=memory, gate=gate, trial=trial)  # type: ignore[arg-type]
    if objective.sharding is not None:
        raise ShardedModelError(
            f"precision must be {own_precision(objective)!r} or None for a sharded model, got {precision!r}: its forward "
            "cannot be followed"
        )
    products: Literal["float32", "bfloat16"] = "bfloat16" if precision == "difference-bf16" else "float32"
    return DifferenceEvaluator(objective, products=products, memory=memory, gate=gate, front_end=method)  # type: ignore[arg-type]


def planned(way: Way) -> PathChoice:
    """The path of a plan, to be obeyed."""
    return PathChoice(way.path, way.unit, {}, "of the plan", way.parts, way.shared)


def chosen_by(way: Way) -> PrecisionChoice:
    """The arithmetic of a plan, with its path."""
    return PrecisionChoice(way.precision, way.reason, path=planned(way))  # type: ignore[arg-type]


def way_of(group: int, chosen: PrecisionChoice, path: PathChoice, noise: Noise) -> Way:
    """How a group of batches is evaluated, for a plan."""
    return Way(group, chosen.name, path.name, path.chunk, path.parts, path.shared, chosen.reason, noise.to_dict())


def own_precision(objective: Objective) -> Precision:
    """The arithmetic of a sharded model, which is evaluated as it is.

    Raises:
        ShardedModelError: it is narrower than float32.
    """
    names: dict[torch.dtype, Precision] = {torch.float64: "float64", torch.float32: "float32"}
    if objective.dtype not in names:
        raise ShardedModelError(
            f"a sharded model must be in float32 or float64, got {objective.dtype}: its rounding is larger than the responses; "
            "call model.float() before its first forward"
        )
    return names[objective.dtype]


def refused_precision(precision: str, error: UntraceableError | MissingRuleError) -> ValueError:
    """The refusal of a model that difference propagation cannot follow, with the argument that asked for it."""
    return type(error)(f"{error}; precision={precision!r} must follow the model: use precision=None, or 'float64'")


# ---------------------------------------------------------------- noise
def measure_noise(
    evaluator: Evaluator | DifferenceEvaluator,
    directions: Directions,
    radii: Array,
    *,
    zeros: bool = False,
) -> Noise:
    """Noise of an evaluator at each radius.

    float64 subtraction: a model and a measured floor, the same at every radius unless the loss goes in steps of unknown size.
    float32: RMS difference from float64 over the first four directions, evaluated in both, and the error of narrower steps, which
    round both alike; where there is no float64 to hold beside it, the scatter between neighbouring weights. Difference
    propagation: its relative error does not depend on the radius; it is measured against float64 lanes on two directions (on one
    where a forward is heavy) at the ends and the middle of the radii, doubled, and applied to the responses of these directions.
    Casts to a narrower dtype round the values at w, not the differences: a few of its units are stated then.

    ``zeros``: find out which parameters move the loss as well, so that zero responses can be judged.
    """
    sharded = evaluator.objective.sharding is not None
    found = _influence(evaluator) if zeros and not sharded else None
    if isinstance(evaluator, DifferenceEvaluator):
        return replace(_noise_of_differences(evaluator, directions, radii), influence=found)
    indices = range(min(CALIBRATION, len(directions)))
    if evaluator.dtype == torch.float64:
        sigma, narrow = noise_float64(evaluator, directions, indices, radii)
        return Noise(sigma, None, narrow, 0, influence=found)
    if sharded:
        scatter, narrow = neighbouring_noise(evaluator, directions, indices, radii)
        return Noise(scatter, None, narrow, 0, f"{_NEIGHBOURS}, because a sharded model runs in its own dtype alone")
    try:
        with exact_evaluator(evaluator) as exact:
            check_same_function(exact.replica)
            reference = exact.responses(directions, indices, radii)
            evaluations = exact.evaluations
    except Exception as error:  # such as a dtype that the loss fixes, or no memory: float32 has just run it
        scatter, narrow = neighbouring_noise(evaluator, directions, indices, radii)
        why = f"{type(error).__name__}: {first_line(error)[:120]}"
        return Noise(
            scatter,
            None,
            narrow,
            0,
            f"{_NEIGHBOURS}, because the loss does not run in float64 as it does in float32 ({why})",
            found,
        )
    measured = evaluator.responses(directions, indices, radii)
    casts, operation = narrow_noise(evaluator, directions, indices)  # which round the reference alike
    with np.errstate(invalid="ignore", over="ignore"):
        errors = [np.sqrt(np.mean((measured[part] - reference[part]) ** 2, axis=1)) for part in (0, 1)]
        errors = [np.fmax(error, casts) for error in errors]
    flat = found is not None and found.flat
    verdicts = np.stack([known_from_zero(reference[part], reference[1 - part], errors[part], flat=flat) for part in (0, 1)])
    return Noise(errors[0], verdicts, operation, evaluations, influence=found)


def beside(evaluator: Evaluator | DifferenceEvaluator, replicas: int = 1) -> int | None:
    """Bytes that an evaluator leaves of its memory to another beside its private copy."""
    memory, objective, dtype = evaluator.cap.memory, evaluator.objective, evaluator.replica.dtype
    if memory is None:
        return None
    own = streamed_bytes(objective, dtype) if _streams(evaluator) else footprint(objective, dtype).alone
    return max(1, memory - replicas * own)


def exact_evaluator(evaluator: Evaluator | DifferenceEvaluator, *, capped: bool = True) -> Evaluator:
    """Subtraction in float64 beside an evaluator, in what that leaves of its memory where it is ``capped``."""
    streamed = _streams(evaluator) or streams(evaluator.objective)
    method: PathName = "stream" if streamed else "loop"
    return Evaluator(evaluator.objective, torch.float64, method=method, gate=False, memory=beside(evaluator) if capped else None)


def _streams(evaluator: Evaluator | DifferenceEvaluator) -> bool:
    return isinstance(evaluator, Evaluator) and evaluator.streamed


def _influence(evaluator: Evaluator | DifferenceEvaluator) -> Influence | None:
    """Which parameters move the loss, in float64 where gradients underflow less; ``None`` where that cannot be told."""
    objective = evaluator.objective
    if _streams(evaluator):
        return None
    if evaluator.cap.memory is not None:
        sizes = footprint(objective, torch.float64)
        room = Cap(beside(evaluator, replicas=int(evaluator.replica.dtype != torch.float64))).room()
        room -= evaluator.memory // 2 if isinstance(evaluator, DifferenceEvaluator) else 0  # of values at w
        if 2 * sizes.copy + sizes.gradient > room:
            return None
    elif _GRADIENT * activation_bytes(evaluator.replica) > available_memory(objective.device):
        return None
    evaluator.replica.evaluations += 1  # of the activations
    try:
        if evaluator.replica.dtype == torch.float64:
            return influence(evaluator.replica)
        with exact_arithmetic(torch.float64):
            wide = objective.replica(torch.float64)
            found = influence(wide)
            evaluator.replica.evaluations += wide.evaluations
            return found
    except (RuntimeError, ValueError, TypeError, NotImplementedError):  # such as a model without a backward pass
        return None


def _noise_of_differences(evaluator: DifferenceEvaluator, directions: Directions, radii: Array) -> Noise:
    count = 1 if multiplications(evaluator.objective) > HEAVY else DIFFERENCES
    indices = range(min(count, len(directions)))
    sample = sorted({0, len(radii) // 2, len(radii) - 1})
    narrow = evaluator.responses(directions, indices, radii)[0]
    blocks = [(index,) for index in indices] if is_large(evaluator.objective) else [indices]
    parts = [evaluator.responses(directions, block, radii[sample], lanes=torch.float64)[0] for block in blocks]
    wide = np.concatenate(parts, axis=1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        relative = _rms(narrow[sample] - wide) / _rms(wide)
        unit = torch.finfo(evaluator.dtype).eps
        error = max(float(np.nanmax(relative, initial=0.0)), unit) if np.isfinite(relative).any() else unit
        found = replica_arithmetic(evaluator.replica)
        smooth = evaluator.program is not None and evaluator.program.smooth
        sigma = max(SAFETY * error, found.error_around(smooth=smooth)) * _rms(narrow)
    evaluations = 0
    if found.rounds:  # its jumps are followed: they are in the responses, as they are in subtraction
        with exact_evaluator(evaluator, capped=False) as exact:
            sigma = np.fmax(sigma, noise_float64(exact, directions, indices, radii)[0])
            evaluations = exact.evaluations
    narrower = "; ".join(filter(None, (found.step, f"roundings in {found.rounds}" if found.rounds else "")))
    return Noise(sigma, None, narrower, evaluations)


def _rms(values: Array) -> Array:
    result: Array = np.sqrt(np.mean(values**2, axis=1))
    return result


# ---------------------------------------------------------------- choice
def choose_precision(
    objective: Objective,
    directions: Directions,
    radii: Array,
    *,
    method: AnyPath | None = None,
    memory: int | None = None,
    trial: float = math.inf,
) -> PrecisionChoice:
    """The cheapest arithmetic whose noise gate passes at every radius, timed on this model; float64 where none does better.

    Args:
        objective: the function.
        directions: whose first two are tried.
        radii: the scales.
        method: a path of subtraction rules difference propagation out, a front end of difference propagation rules it in.
        memory: as for the evaluators.
        trial: seconds that trying may take.
    """
    one_of("method", method, (*get_args(PathName), *get_args(FrontEnd), None), "to measure")
    if objective.sharding is not None and method in (None, "loop"):
        return PrecisionChoice(own_precision(objective), "a sharded model is evaluated in its own dtype")
    if method in get_args(FrontEnd):
        return PrecisionChoice("difference", f"method={method!r} was asked for")
    if method is not None:
        return PrecisionChoice("float64", f"method={method!r} was asked for")
    return _Arithmetics(objective, directions, radii, memory, trial).choice()


def _unable(_name: str, error: Exception) -> str:
    return first_line(error)[:300] if isinstance(error, (UntraceableError, MissingRuleError)) else told(error, 300)


class _Arithmetics:
    """Tries each arithmetic on the first directions of a model."""

    def __init__(self, objective: Objective, directions: Directions, radii: Array, memory: int | None, limit: float) -> None:
        self.objective, self.directions, self.radii = objective, directions, radii
        self.memory, self.limit = memory, limit
        self.trial = Trial[PathChoice](_unable)
        self.truth: Array | None = None
        self.evaluations = 0
        self.sample = radii[sorted({0, len(radii) // 2, len(radii) - 1})]

    def choice(self) -> PrecisionChoice:
        trial = self.trial
        try:
            paths: dict[str, PathChoice] = {"float64": self._float64()}
        except (NarrowLossError, DtypeDependentLossError) as error:  # difference propagation takes its values at w in float64 too
            if isinstance(error, DtypeDependentLossError) and self.objective.dtype != torch.float32:
                raise
            return PrecisionChoice("float32", f"float64 and difference: {first_line(error)}")
        if max(_LEAST, self.forward * _FORWARDS) > self.limit:
            reason = f"the budget is too short to try others: a forward takes {self.forward:.2g} s"
            return PrecisionChoice("float64", reason, trial.seconds, paths["float64"], self.evaluations)
        for name, attempt in (("difference", self._difference), ("float32", self._float32)):
            path = trial.attempt(name, attempt)
            if path is not None:
                paths[name] = path
        best = trial.best("float64")
        return PrecisionChoice(best, self._reason(best), trial.seconds, paths[best], self.evaluations)  # type: ignore[arg-type]

    def _reason(self, best: str) -> str:
        words, seconds = [], self.trial.seconds
        for name in ("float32", "difference", "float64"):
            if name in self.trial.refused:  # float64 also where it is taken for want of a better one
                words.append(f"{name}: {self.trial.refused[name]}")
            elif name in seconds and name != best:
                words.append(f"{name} is {seconds[name] / seconds[best]:.1f}x slower")
        return "; ".join(words)

    def _timed(self, evaluator: Evaluator | DifferenceEvaluator, count: int) -> float:
        """Seconds per response."""
        return timed(lambda: evaluator.responses(self.directions, range(count), self.radii), 1)[0] / (count * len(self.radii))

    def _float64(self) -> PathChoice:
        with Evaluator(self.objective, torch.float64, memory=self.memory, trial=self.limit) as evaluator:
            path = evaluator.choose(self.directions, self.radii)
            self.forward = evaluator.forward_seconds
            quick = self.forward * 2 * len(self.radii) * 10 < self.limit
            count = min(path.chunk, len(self.directions))
            self.trial.seconds["float64"] = (
                self._timed(evaluator, count) if quick else 2 * min(path.seconds.values(), default=self.forward)
            )
            few = range(min(CALIBRATION if quick else 1, len(self.directions)))
            even = evaluator.responses(self.directions, few, self.sample)[0]
            noise = noise_float64(evaluator, self.directions, few, self.sample)[0]
            self.evaluations += evaluator.evaluations
            if not passes_gate(even, noise).all():  # its path is kept, for want of a better one
                self.trial.refused["float64"] = self._drowned(even, noise)
        return path

    def _drowned(self, even: Array, noise: Array) -> str:
        failed = self.sample[~passes_gate(even, noise)]
        return f"rounding noise at radii up to {failed.max():.1e}"

    def _difference(self) -> PathChoice:
        with DifferenceEvaluator(self.objective, memory=self.memory) as evaluator:
            path = evaluator.choose(self.directions, self.radii)
            count = min(path.chunk, len(self.directions))
            seconds, (even, _, _) = timed(lambda: evaluator.responses(self.directions, range(count), self.radii), 1)
            warm = seconds > _WARM
            self.trial.seconds["difference"] = seconds / even.size if warm else self._timed(evaluator, count)
            noise = measure_noise(evaluator, self.directions, self.radii)
            self.truth = evaluator.responses(self.directions, (0,), self.sample, lanes=torch.float64)[0]
            self.evaluations += evaluator.evaluations
            if evaluator.handling.frozen:
                raise Refusal(f"decisions that depend on the weights: {', '.join(evaluator.handling.frozen)}")
            if not passes_gate(even, noise.sigma).all():
                raise Refusal("its error is above a tenth of the responses")
        return path

    def _float32(self) -> PathChoice:
        with Evaluator(self.objective, torch.float32, memory=self.memory, trial=self.limit) as evaluator:
            path = evaluator.choose(self.directions, self.radii)
            even = evaluator.responses(self.directions, (0,), self.sample)[0]
            if self.truth is None:
                with exact_evaluator(evaluator) as exact:
                    self.truth = exact.responses(self.directions, (0,), self.sample)[0]
            self.evaluations += evaluator.evaluations
            noise = np.abs(even - self.truth)[:, 0]
            if not passes_gate(self.truth, noise).all():
                raise Refusal(self._drowned(self.truth, noise))
            self.trial.seconds["float32"] = self._timed(evaluator, min(path.chunk, len(self.directions)))
            full = measure_noise(evaluator, self.directions, self.radii)
            if full.calibrated is not None and not full.calibrated[0].all():
                raise Refusal("rounding noise at some radii")
        return path
