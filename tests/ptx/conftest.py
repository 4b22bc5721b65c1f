"""Every kernel that the tests of the test tools need, compiled once."""

from importlib.util import find_spec

import pytest

from ptx.aot import CompileFailure, compile_in_subprocess
from ptx.samples import ARCHS, SPECIAL, samples

collect_ignore = [] if find_spec("triton") else ["sample_kernels.py"]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory):
    """Kernels and failures by name, for `samples` by name and chip."""
    pytest.importorskip("triton")
    pytest.importorskip("cuda.bindings")
    jobs = SPECIAL | {(name, arch): job for arch in ARCHS for name, job in samples(arch).items()}
    return dict(zip(jobs, compile_in_subprocess(list(jobs.values()), tmp_path_factory.mktemp("aot")), strict=True))


@pytest.fixture(scope="session")
def compiled(outcomes):
    """The kernel of a name, or of a name and a chip."""

    def find(*key):
        outcome = outcomes[key if len(key) > 1 else key[0]]
        assert not isinstance(outcome, CompileFailure), outcome.error
        return outcome

    return find
