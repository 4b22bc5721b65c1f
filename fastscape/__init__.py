"""Measure the geometry of a neural network's loss, with numbers that can be believed.

The public names; see the README for a tour and each docstring for formula, shapes, errors, cost and source. A name is
imported where it is first used: importing the package loads neither torch nor numpy nor scipy.
"""

import importlib.util
import random
from types import ModuleType

import fastscape._interrupts  # noqa: F401 - first, because what follows takes seconds

_NAMES = {
    "fastscape._version": "__version__",
    "fastscape.directions.axes": "Axes",
    "fastscape.directions.directions": "Directions",
    "fastscape.estimators.analysis": "Analysis AnalysisSettings",
    "fastscape.estimators.association": "Association association",
    "fastscape.estimators.intervals": "Estimate",
    "fastscape.estimators.multifractal": "analyse",
    "fastscape.estimators.rules": "Condition DEFAULT_RULES Rule Verdict",
    "fastscape.estimators.spectra": "Stability",
    "fastscape.evaluation.agreement": "DtypeDependentLossError",
    "fastscape.evaluation.curvature.choice": "AsymmetricProductError NoPathError ProductChoice",
    "fastscape.evaluation.curvature.operator": "CurvatureOperator ggn hessian",
    "fastscape.evaluation.determinism": "NarrowLossError NondeterministicLossError",
    "fastscape.evaluation.differences.propagation": "MissingRuleError",
    "fastscape.evaluation.differences.refusals": "UntraceableError",
    "fastscape.evaluation.losses": "losses",
    "fastscape.evaluation.operators": "Operators operators",
    "fastscape.evaluation.quadratic": "quadratic_forms QuadraticForms",
    "fastscape.evaluation.responses": "PrecisionWarning Responses responses",
    "fastscape.objective": "Objective",
    "fastscape.ops._status": "Status status",
    "fastscape.probes.bench": "bench",
    "fastscape.probes.connectivity": "barrier barriers connect",
    "fastscape.probes.curvature": "mean_quadratic_form",
    "fastscape.probes.difficulty": "Difficulty",
    "fastscape.probes.doctor": "doctor",
    "fastscape.probes.dynamics": "temperature",
    "fastscape.probes.multifractal": "multifractal trajectory",
    "fastscape.probes.session": "ProbeError Progress",
    "fastscape.probes.sharpness": "sharpness",
    "fastscape.probes.signature": "probe signature",
    "fastscape.probes.slices": "slice1d slice2d SliceError",
    "fastscape.probes.spectrum": "spectrum SpectrumError",
    "fastscape.probes.spectrum_trajectory": "spectra",
    "fastscape.probes.stability": "edge_of_stability",
    "fastscape.probes.tracker": "Tracker",
    "fastscape.probes.warned": "TrackerWarning",
    "fastscape.reports.bench": "BenchResult",
    "fastscape.reports.comparison": "compare Comparison",
    "fastscape.reports.connectivity": "BarrierMatrix BarrierResult CurveResult",
    "fastscape.reports.doctor": "Diagnosis",
    "fastscape.reports.dynamics": "TemperatureResult",
    "fastscape.reports.probe": "ProbeResult",
    "fastscape.reports.result": "MultifractalResult TrajectoryResult",
    "fastscape.reports.sharpness": "SharpnessResult",
    "fastscape.reports.signature": "Signature",
    "fastscape.reports.slices": "PlaneResult SliceResult",
    "fastscape.reports.spectrum": "SpectrumResult SpectrumTrajectory",
    "fastscape.reports.storage": "load",
    "fastscape.reports.tracking": "DifficultyResult TrackResult",
    "fastscape.runs.schedule": "fractions log_spaced Schedule",
    "fastscape.runs.settings": "preset ProbeSettings",
}  # by the module that holds them; __init__.pyi tells the same to type checkers
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """A public name, or a module of the package, imported where it is first used."""
    if name in _HOMES:
        value: object = getattr(_imported(_HOMES[name]), name)
        globals()[name] = value
        return value
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return _imported(f"{__name__}.{name}")
    raise AttributeError(_unknown(name))


def _imported(module: str) -> ModuleType:
    """A module; the global random numbers of Python, of which rich draws some as it is imported, stay the user's."""
    drawn = random.getstate()
    try:
        return importlib.import_module(module)
    finally:
        random.setstate(drawn)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _unknown(name: str) -> str:
    difflib = importlib.import_module("difflib")
    near = difflib.get_close_matches(name, __all__, n=1)
    return f"module {__name__!r} has no attribute {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
