"""Measure the geometry of a neural network's loss, with numbers that can be believed.

The public names; see the README for a tour and each docstring for formula, shapes, errors, cost and source. A name is
imported where it is first used: importing the package loads neither torch nor numpy nor scipy.
"""

import importlib.util
import random
import sys
import threading
from types import ModuleType

import fastscape._interrupts  # noqa: F401 - first, because what follows takes seconds

_NAMES = {
    "fastscape._version": "__version__",
    "fastscape.directions.axes": "Axes",
    "fastscape.directions.directions": "Directions",
    "fastscape.probes.multifractal.description": "Analysis AnalysisSettings",
    "fastscape.probes.signature.association": "Association association",
    "fastscape.numerics.estimate": "Estimate",
    "fastscape.probes.multifractal.analyse": "analyse",
    "fastscape.probes.signature.rules": "Condition DEFAULT_RULES Rule Verdict",
    "fastscape.numerics.spectra": "Stability",
    "fastscape.evaluation.agreement": "DtypeDependentLossError",
    "fastscape.curvature.choice": "NoPathError ProductChoice",
    "fastscape.curvature.soundness": "AsymmetricProductError",
    "fastscape.curvature.operator": "CurvatureOperator ggn hessian",
    "fastscape.curvature.serving": "serve",
    "fastscape.runs.ranks": "RankError",
    "fastscape.evaluation.determinism": "NarrowLossError NondeterministicLossError",
    "fastscape.differences.propagation": "MissingRuleError",
    "fastscape.differences.tracing_errors": "UntraceableError",
    "fastscape.evaluation.losses": "losses",
    "fastscape.response.operators": "Operators operators",
    "fastscape.curvature.forms.quadratic": "quadratic_forms QuadraticForms",
    "fastscape.response.responses": "PrecisionWarning Responses responses",
    "fastscape.objective.objective": "Objective",
    "fastscape.ops._status": "Status status",
    "fastscape.probes.bench.probe": "bench",
    "fastscape.probes.barriers.probe": "barrier barriers connect",
    "fastscape.curvature.forms.mean": "mean_quadratic_form",
    "fastscape.curvature.forms.trace": "trace TraceEstimate",
    "fastscape.probes.tracking.difficulty": "Difficulty",
    "fastscape.probes.doctor.probe": "doctor",
    "fastscape.probes.temperature.probe": "temperature",
    "fastscape.probes.multifractal.probe": "multifractal trajectory",
    "fastscape.probes.multifractal.resumption": "merge",
    "fastscape.probes.multifractal.session": "ProbeError",
    "fastscape.probes.critical.probe": "critical_sharpness",
    "fastscape.probes.diagonal.probe": "diagonal",
    "fastscape.probes.sharpness.probe": "sharpness",
    "fastscape.probes.signature.probe": "probe signature",
    "fastscape.probes.slices.probe": "slice1d slice2d SliceError",
    "fastscape.probes.spectrum.probe": "spectrum SpectrumError",
    "fastscape.probes.spectrum.trajectory": "spectra",
    "fastscape.probes.spectrum.stability": "edge_of_stability",
    "fastscape.probes.tracking.tracker": "Tracker",
    "fastscape.probes.tracking.warnings_once": "TrackerWarning",
    "fastscape.probes.bench.result": "BenchResult",
    "fastscape.probes.signature.comparison": "compare Comparison",
    "fastscape.probes.barriers.result": "BarrierMatrix BarrierResult CurveResult",
    "fastscape.probes.doctor.result": "Diagnosis",
    "fastscape.probes.temperature.result": "TemperatureResult",
    "fastscape.probes.signature.probe_result": "ProbeResult",
    "fastscape.probes.multifractal.result": "MultifractalResult TrajectoryResult",
    "fastscape.probes.critical.result": "CriticalSharpnessResult",
    "fastscape.probes.diagonal.result": "DiagonalResult",
    "fastscape.probes.sharpness.result": "SharpnessResult",
    "fastscape.probes.signature.result": "Signature",
    "fastscape.probes.slices.result": "PlaneResult SliceResult",
    "fastscape.probes.spectrum.result": "SpectrumResult SpectrumTrajectory",
    "fastscape.reports.storage": "load",
    "fastscape.runs.anytime": "PartialResultError",
    "fastscape.probes.tracking.result": "DifficultyResult TrackResult",
    "fastscape.probes.tracking.schedule": "fractions log_spaced Schedule",
    "fastscape.probes.multifractal.settings": "preset ProbeSettings",
    "fastscape.runs.executor_workers": "WorkerError",
    "fastscape.runs.plan": "Plan",
    "fastscape.runs.progress": "Progress",
    "fastscape.runs.run": "Run",
    "fastscape.zoo.source": "Source",
}  # by the module that holds them; __init__.pyi tells the same to type checkers
_importing = threading.RLock()
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """A public name, or a module of the package, imported where it is first used."""
    if name in _HOMES:
        value: object = getattr(_imported(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name.isidentifier() and name[0] != "_" and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return _imported(f"{__name__}.{name}")
    raise AttributeError(_unknown(name))


def _imported(module: str) -> ModuleType:
    """A module; the global random numbers of Python, of which rich draws some as it is imported, stay the user's.

    Beside other threads, which may draw too, they are left where they are, not to be drawn twice.
    """
    with _importing:  # torch imported by two threads at once ends the process
        drawn, alone = random.getstate(), len(sys._current_frames()) == 1
        try:
            return importlib.import_module(module)
        finally:
            if alone and len(sys._current_frames()) == 1:
                random.setstate(drawn)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _unknown(name: str) -> str:
    difflib = importlib.import_module("difflib")
    near = difflib.get_close_matches(name, __all__, n=1)
    return f"module {__name__!r} has no attribute {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
