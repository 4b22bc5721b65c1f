"""What a user asks: one file per question."""

from fastscape.probes.curvature import mean_quadratic_form
from fastscape.probes.multifractal import multifractal, trajectory
from fastscape.probes.session import ProbeError, Progress
from fastscape.probes.slices import SliceError, slice1d, slice2d
from fastscape.probes.spectrum import SpectrumError, SpectrumProgress, spectrum
from fastscape.probes.spectrum_trajectory import spectra
from fastscape.probes.stability import edge_of_stability

__all__ = [
    "ProbeError",
    "Progress",
    "SliceError",
    "SpectrumError",
    "SpectrumProgress",
    "edge_of_stability",
    "mean_quadratic_form",
    "multifractal",
    "slice1d",
    "slice2d",
    "spectra",
    "spectrum",
    "trajectory",
]
