from fastscape._version import __version__ as __version__
from fastscape.directions.axes import Axes as Axes
from fastscape.directions.directions import Directions as Directions
from fastscape.estimators.analysis import Analysis as Analysis, AnalysisSettings as AnalysisSettings
from fastscape.estimators.association import Association as Association, association as association
from fastscape.estimators.intervals import Estimate as Estimate
from fastscape.estimators.multifractal import analyse as analyse
from fastscape.estimators.rules import Condition as Condition, DEFAULT_RULES as DEFAULT_RULES, Rule as Rule, Verdict as Verdict
from fastscape.estimators.spectra import Stability as Stability
from fastscape.evaluation.agreement import DtypeDependentLossError as DtypeDependentLossError
from fastscape.evaluation.curvature.choice import (
    AsymmetricProductError as AsymmetricProductError,
    NoPathError as NoPathError,
    ProductChoice as ProductChoice,
)
from fastscape.evaluation.curvature.operator import CurvatureOperator as CurvatureOperator, ggn as ggn, hessian as hessian
from fastscape.evaluation.determinism import (
    NarrowLossError as NarrowLossError,
    NondeterministicLossError as NondeterministicLossError,
)
from fastscape.evaluation.differences.propagation import MissingRuleError as MissingRuleError
from fastscape.evaluation.differences.refusals import UntraceableError as UntraceableError
from fastscape.evaluation.losses import losses as losses
from fastscape.evaluation.operators import Operators as Operators, operators as operators
from fastscape.evaluation.quadratic import quadratic_forms as quadratic_forms, QuadraticForms as QuadraticForms
from fastscape.evaluation.responses import PrecisionWarning as PrecisionWarning, Responses as Responses, responses as responses
from fastscape.objective import Objective as Objective
from fastscape.ops._status import Status as Status, status as status
from fastscape.probes.bench import bench as bench
from fastscape.probes.connectivity import barrier as barrier, barriers as barriers, connect as connect
from fastscape.probes.curvature import mean_quadratic_form as mean_quadratic_form
from fastscape.probes.difficulty import Difficulty as Difficulty
from fastscape.probes.doctor import doctor as doctor
from fastscape.probes.dynamics import temperature as temperature
from fastscape.probes.multifractal import multifractal as multifractal, trajectory as trajectory
from fastscape.probes.session import ProbeError as ProbeError, Progress as Progress
from fastscape.probes.sharpness import sharpness as sharpness
from fastscape.probes.signature import probe as probe, signature as signature
from fastscape.probes.slices import slice1d as slice1d, slice2d as slice2d, SliceError as SliceError
from fastscape.probes.spectrum import spectrum as spectrum, SpectrumError as SpectrumError
from fastscape.probes.spectrum_trajectory import spectra as spectra
from fastscape.probes.stability import edge_of_stability as edge_of_stability
from fastscape.probes.tracker import Tracker as Tracker
from fastscape.probes.warned import TrackerWarning as TrackerWarning
from fastscape.reports.bench import BenchResult as BenchResult
from fastscape.reports.comparison import compare as compare, Comparison as Comparison
from fastscape.reports.connectivity import (
    BarrierMatrix as BarrierMatrix,
    BarrierResult as BarrierResult,
    CurveResult as CurveResult,
)
from fastscape.reports.doctor import Diagnosis as Diagnosis
from fastscape.reports.dynamics import TemperatureResult as TemperatureResult
from fastscape.reports.probe import ProbeResult as ProbeResult
from fastscape.reports.result import MultifractalResult as MultifractalResult, TrajectoryResult as TrajectoryResult
from fastscape.reports.sharpness import SharpnessResult as SharpnessResult
from fastscape.reports.signature import Signature as Signature
from fastscape.reports.slices import PlaneResult as PlaneResult, SliceResult as SliceResult
from fastscape.reports.spectrum import SpectrumResult as SpectrumResult, SpectrumTrajectory as SpectrumTrajectory
from fastscape.reports.storage import load as load
from fastscape.reports.tracking import DifficultyResult as DifficultyResult, TrackResult as TrackResult
from fastscape.runs.schedule import fractions as fractions, log_spaced as log_spaced, Schedule as Schedule
from fastscape.runs.settings import preset as preset, ProbeSettings as ProbeSettings
