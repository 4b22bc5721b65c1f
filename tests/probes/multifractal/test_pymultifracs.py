"""The independent multifractal package pymultifracs gives the same exponents (T12)."""

import warnings

import numpy as np
import pytest

from fastscape.probes.multifractal.exponents import cumulants, exponents, structure_exponents
from fastscape.probes.multifractal.moments import log_measure, moments

with warnings.catch_warnings():  # of its dependencies at import, none of ours
    warnings.simplefilter("ignore")
    pymultifracs = pytest.importorskip("pymultifracs")
    multiresquantity = pytest.importorskip("pymultifracs.multiresquantity")

EXACT = {"rtol": 0, "atol": 1e-12}

Q = np.array([-3.0, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4])


def peer(r):
    """Structure exponents, h(q), D(q) and log-cumulants of r [K, N] at dyadic radii, by pymultifracs."""
    scales = {j: row[:, None] for j, row in enumerate(r, start=1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decomposition = multiresquantity.WaveletDec(values=scales, n_channel=1, wt_name="db3", gamint=0)
        found = pymultifracs.mfa(
            decomposition, [(1, len(r))], weighted=None, n_cumul=2, q=Q, R=1, estimates="scm", check_regularity=False
        )
        parts = (found.structure.slope, found.spectrum.hq, found.spectrum.Dq, found.cumulants.log_cumulants)
        return [np.asarray(part).squeeze() for part in parts]


@pytest.fixture(params=["f2", "walk", "powers"])
def dyadic(request, f2, lognormal_walk):
    if request.param == "f2":
        return f2
    if request.param == "walk":
        return lognormal_walk(1, 200, 0.2)
    rng = np.random.default_rng(2)
    eps = 2.0 ** np.arange(-9, 0)
    return eps, rng.uniform(0.5, 2, 60) * eps[:, None] ** rng.normal(1.5, 0.3, 60)


def test_structure_exponents_agree(dyadic):
    eps, r = dyadic
    zeta, _, _, _ = peer(r)
    np.testing.assert_allclose(structure_exponents(np.log(r), np.log(eps), Q), zeta, **EXACT)


def test_spectra_agree(dyadic):
    eps, r = dyadic
    zeta, hq, dq, _ = peer(r)
    ours = exponents(moments(log_measure(np.log(r)), Q), np.log(eps), Q)
    zeta_1 = zeta[Q == 1]
    np.testing.assert_allclose(ours.tau, zeta - Q * zeta_1, **EXACT)
    np.testing.assert_allclose(ours.alpha, hq - zeta_1, **EXACT)
    np.testing.assert_allclose(ours.f, dq - 1, **EXACT)


def test_log_cumulants_agree(dyadic):
    eps, r = dyadic
    ours = cumulants(np.log(r), np.log(eps))
    np.testing.assert_allclose([ours.c1, ours.c2], peer(r)[3], **EXACT)
