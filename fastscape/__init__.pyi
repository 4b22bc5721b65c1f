from fastscape._version import __version__ as __version__
from fastscape.directions.axes import Axes as Axes
from fastscape.directions.directions import Directions as Directions
from fastscape.probes.multifractal.description import Analysis as Analysis, AnalysisSettings as AnalysisSettings
from fastscape.probes.signature.association import Association as Association, association as association
from fastscape.numerics.estimate import Estimate as Estimate
from fastscape.probes.multifractal.analyse import analyse as analyse
from fastscape.probes.signature.rules import (
    Condition as Condition,
    DEFAULT_RULES as DEFAULT_RULES,
    Rule as Rule,
    Verdict as Verdict,
)
from fastscape.numerics.spectra import Stability as Stability
from fastscape.evaluation.agreement import DtypeDependentLossError as DtypeDependentLossError
from fastscape.curvature.choice import (
    NoPathError as NoPathError,
    ProductChoice as ProductChoice,
)
from fastscape.curvature.soundness import AsymmetricProductError as AsymmetricProductError
from fastscape.curvature.operator import CurvatureOperator as CurvatureOperator, ggn as ggn, hessian as hessian
from fastscape.curvature.serving import serve as serve
from fastscape.runs.ranks import RankError as RankError
from fastscape.evaluation.determinism import (
    NarrowLossError as NarrowLossError,
    NondeterministicLossError as NondeterministicLossError,
)
from fastscape.differences.propagation import MissingRuleError as MissingRuleError
from fastscape.differences.tracing_errors import UntraceableError as UntraceableError
from fastscape.evaluation.losses import losses as losses
from fastscape.response.operators import Operators as Operators, operators as operators
from fastscape.curvature.forms.quadratic import quadratic_forms as quadratic_forms, QuadraticForms as QuadraticForms
from fastscape.response.responses import PrecisionWarning as PrecisionWarning, Responses as Responses, responses as responses
from fastscape.objective.objective import Objective as Objective
from fastscape.ops._status import Status as Status, status as status
from fastscape.probes.bench.probe import bench as bench
from fastscape.probes.barriers.probe import barrier as barrier, barriers as barriers, connect as connect
from fastscape.curvature.forms.mean import mean_quadratic_form as mean_quadratic_form
from fastscape.curvature.forms.trace import trace as trace, TraceEstimate as TraceEstimate
from fastscape.probes.tracking.difficulty import Difficulty as Difficulty
from fastscape.probes.doctor.probe import doctor as doctor
from fastscape.probes.temperature.probe import temperature as temperature
from fastscape.probes.multifractal.probe import multifractal as multifractal, trajectory as trajectory
from fastscape.probes.multifractal.resumption import merge as merge
from fastscape.probes.multifractal.session import ProbeError as ProbeError
from fastscape.probes.critical.probe import critical_sharpness as critical_sharpness
from fastscape.probes.diagonal.probe import diagonal as diagonal
from fastscape.probes.sharpness.probe import sharpness as sharpness
from fastscape.probes.signature.probe import probe as probe, signature as signature
from fastscape.probes.slices.probe import slice1d as slice1d, slice2d as slice2d, SliceError as SliceError
from fastscape.probes.spectrum.probe import spectrum as spectrum, SpectrumError as SpectrumError
from fastscape.probes.spectrum.trajectory import spectra as spectra
from fastscape.probes.spectrum.stability import edge_of_stability as edge_of_stability
from fastscape.probes.tracking.tracker import Tracker as Tracker
from fastscape.probes.tracking.warnings_once import TrackerWarning as TrackerWarning
from fastscape.probes.bench.result import BenchResult as BenchResult
from fastscape.probes.signature.comparison import compare as compare, Comparison as Comparison
from fastscape.probes.barriers.result import (
    BarrierMatrix as BarrierMatrix,
    BarrierResult as BarrierResult,
    CurveResult as CurveResult,
)
from fastscape.probes.doctor.result import Diagnosis as Diagnosis
from fastscape.probes.temperature.result import TemperatureResult as TemperatureResult
from fastscape.probes.signature.probe_result import ProbeResult as ProbeResult
from fastscape.probes.multifractal.result import MultifractalResult as MultifractalResult, TrajectoryResult as TrajectoryResult
from fastscape.probes.critical.result import CriticalSharpnessResult as CriticalSharpnessResult
from fastscape.probes.diagonal.result import DiagonalResult as DiagonalResult
from fastscape.probes.sharpness.result import SharpnessResult as SharpnessResult
from fastscape.probes.signature.result import Signature as Signature
from fastscape.probes.slices.result import PlaneResult as PlaneResult, SliceResult as SliceResult
from fastscape.probes.spectrum.result import SpectrumResult as SpectrumResult, SpectrumTrajectory as SpectrumTrajectory
from fastscape.reports.storage import load as load
from fastscape.runs.anytime import PartialResultError as PartialResultError
from fastscape.probes.tracking.result import DifficultyResult as DifficultyResult, TrackResult as TrackResult
from fastscape.probes.tracking.schedule import fractions as fractions, log_spaced as log_spaced, Schedule as Schedule
from fastscape.probes.multifractal.settings import preset as preset, ProbeSettings as ProbeSettings
from fastscape.runs.executor_workers import WorkerError as WorkerError
from fastscape.runs.plan import Plan as Plan
from fastscape.runs.progress import Progress as Progress
from fastscape.runs.run import Run as Run
from fastscape.zoo.source import Source as Source
