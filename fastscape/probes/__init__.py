"""What a user asks: one file per question."""

from fastscape.probes.bench import bench
from fastscape.probes.connectivity import barrier, barriers, connect
from fastscape.probes.curvature import mean_quadratic_form
from fastscape.probes.difficulty import Difficulty
from fastscape.probes.doctor import doctor
from fastscape.probes.dynamics import temperature
from fastscape.probes.multifractal import multifractal, trajectory
from fastscape.probes.session import ProbeError, Progress
from fastscape.probes.sharpness import sharpness
from fastscape.probes.signature import probe, signature
from fastscape.probes.slices import SliceError, slice1d, slice2d
from fastscape.probes.spectrum import SpectrumError, SpectrumProgress, spectrum
from fastscape.probes.spectrum_trajectory import spectra
from fastscape.probes.stability import edge_of_stability
from fastscape.probes.tracker import Tracker
from fastscape.probes.warned import TrackerWarning

__all__ = [
    "Difficulty",
    "ProbeError",
    "Progress",
    "SliceError",
    "SpectrumError",
    "SpectrumProgress",
    "Tracker",
    "TrackerWarning",
    "barrier",
    "barriers",
    "bench",
    "connect",
    "doctor",
    "edge_of_stability",
    "mean_quadratic_form",
    "multifractal",
    "probe",
    "sharpness",
    "signature",
    "slice1d",
    "slice2d",
    "spectra",
    "spectrum",
    "temperature",
    "trajectory",
]
