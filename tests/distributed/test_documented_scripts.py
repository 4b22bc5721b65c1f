"""The scripts of docs/distributed.md and docs/sharded.md run as they are printed there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import limited

import fastscape as fs

ROOT = Path(__file__).parents[2]


@pytest.mark.distributed
@pytest.mark.parametrize(("page", "method"), [("distributed", "graph"), ("sharded", "gradient difference")])
def test_the_documented_script_gives_responses_m_tau_and_a_spectrum(page, method, tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    (tmp_path / "script.py").write_text(script)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=limited(),
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert "(3, 4)" in run.stdout
    assert "M_tau Estimate(" in run.stdout
    result, spectrum = fs.load(tmp_path / "multifractal.npz"), fs.load(tmp_path / "spectrum.npz")
    assert result.measured.even.shape[2] == 4
    assert spectrum.converged.all()
    assert spectrum.meta["path"] == method
