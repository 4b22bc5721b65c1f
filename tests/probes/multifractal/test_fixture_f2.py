"""Every printed number of the deterministic fixture F2 (N = 8 directions, K = 6 radii)."""

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.exponents import exponents, ratio_spectrum
from fastscape.probes.multifractal.moments import log_measure, moments
from fastscape.probes.multifractal.scalars import m_tau

PRINTED = {"curves": 5.1e-11, "n_eff": 5.1e-10, "log_z": 5.1e-13}  # half a unit of the last printed digit

AUTHORS_GRID = np.array([-3, -2, -1.5, -1, -0.5, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4])
Q = np.array([-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4])
CURVES = {
    "tau": "-0.8160211581 -0.4372719904 -0.1452161850 -0.0520126417 0 0.0145246671 0 -0.0825648620 -0.2011494082 -0.3356282457",
    "alpha": "0.4037030070 0.3458828352 0.2264526566 0.1451580315 0.0642218807 -0.0031449688 -0.0519059236 -0.1055859202 "
    "-0.1285061278 -0.1392180860",
    "f": "-0.3950878630 -0.2544936801 -0.0812364716 -0.0205663740 0 -0.0160971515 -0.0519059236 -0.1286069783 "
    "-0.1843689751 -0.2212440981",
    "dimension": "0.2040052895 0.1457573301 0.0726080925 0.0346750945 0 -0.0290493342 -0.0519059236 -0.0825648620 "
    "-0.1005747041 -0.1118760819",
    "tau_stderr": "0.1336203477 0.0793609548 0.0281901447 0.0101348196 0 0.0026571375 0 0.0126471759 0.0275159987 0.0416898607",
}
ALPHA_RATIO = (
    "1.3939300914 1.3587780715 1.3075478232 1.2775985043 1.2487222314 1.2240855608 1.2048733263 1.1797982090 1.1653322206 "
    "1.1560856954"
)
F_RATIO = (
    "1.0330505168 1.1197307934 1.1952306750 1.2176592307 1.2250000000 1.2190595977 1.2048733263 1.1684810154 1.1329149322 "
    "1.1008549045"
)
N_EFF = "1.659433672 2.428903761 4.792561083 6.898611109 8 7.205209981 5.968117945 4.405491542 3.655795457 3.224253811"
LOG_Z_2 = "-1.786431625629 -1.893883836876 -1.976067796742 -2.030478861425 -2.061358337230 -2.075671921702"
H = "1.4275473195 1.4219389171 1.4846965367 1.5714272694 1.6688973857 1.7723245983 1.8812627039 2"
SCALARS = {
    "h_mean": 1.6535118413,
    "h_std": 0.2019282528,
    "h_span": 0.5780610829,
    "c1": 1.6535118413,
    "c2": -0.1516243367,
}


def printed(line: str) -> np.ndarray:
    return np.array(line.split(), dtype=np.float64)


def measure(f2):
    eps, r = f2
    return eps, log_measure(np.log(r))


@pytest.mark.parametrize("name", CURVES)
def test_spectrum_has_the_printed_values(f2, name):
    eps, log_p = measure(f2)
    spectrum = exponents(moments(log_p, Q), np.log(eps), Q)
    np.testing.assert_allclose(getattr(spectrum, name), printed(CURVES[name]), rtol=0, atol=PRINTED["curves"])


def test_ratio_variant_has_the_printed_values(f2):
    eps, log_p = measure(f2)
    alpha, f = ratio_spectrum(log_p, eps, Q)
    np.testing.assert_allclose(alpha, printed(ALPHA_RATIO), rtol=0, atol=PRINTED["curves"])
    np.testing.assert_allclose(f, printed(F_RATIO), rtol=0, atol=PRINTED["curves"])


def test_effective_number_of_directions_has_the_printed_values(f2):
    _, log_p = measure(f2)
    np.testing.assert_allclose(moments(log_p, Q).n_eff[0], printed(N_EFF), rtol=0, atol=PRINTED["n_eff"])


def test_second_moment_has_the_printed_values(f2):
    _, log_p = measure(f2)
    second = moments(log_p, np.array([2.0])).log_z[:, 0]
    np.testing.assert_allclose(second, printed(LOG_Z_2), rtol=0, atol=PRINTED["log_z"])


@pytest.mark.parametrize(("grid", "expected"), [(Q, 0.2246140532), (AUTHORS_GRID, 0.1999244755)])
def test_m_tau_has_the_printed_value(f2, grid, expected):
    eps, log_p = measure(f2)
    tau = exponents(moments(log_p, grid), np.log(eps), grid).tau
    assert m_tau(tau, grid) == pytest.approx(expected, rel=0, abs=PRINTED["curves"])


def test_analysis_of_the_fixture_has_the_printed_values(f2):
    eps, r = f2
    result = analyse([r], eps, settings=AnalysisSettings(bootstrap=20))
    window = result.pooled[0][0]
    assert result.estimates["m_tau"].value == pytest.approx(0.1999244755, rel=0, abs=PRINTED["curves"])
    np.testing.assert_allclose(window.holder.h, printed(H), rtol=0, atol=PRINTED["curves"])
    for name, expected in SCALARS.items():
        assert window.scalars[name] == pytest.approx(expected, rel=0, abs=PRINTED["curves"]), name


def test_analysis_on_the_fixture_grid_has_the_printed_curves(f2):
    eps, r = f2
    result = analyse([r], eps, settings=AnalysisSettings(q=tuple(Q), bootstrap=20))
    window = result.pooled[0][0]
    assert result.settings.q == tuple(Q)
    for name, line in CURVES.items():
        np.testing.assert_allclose(getattr(window.spectrum, name), printed(line), rtol=0, atol=PRINTED["curves"])
    np.testing.assert_allclose(window.spectrum.n_eff, printed(N_EFF), rtol=0, atol=PRINTED["n_eff"])
    np.testing.assert_allclose(window.alpha_ratio, printed(ALPHA_RATIO), rtol=0, atol=PRINTED["curves"])
    np.testing.assert_allclose(window.f_ratio, printed(F_RATIO), rtol=0, atol=PRINTED["curves"])
    np.testing.assert_allclose(result.tau.value, printed(CURVES["tau"]), rtol=0, atol=PRINTED["curves"])
