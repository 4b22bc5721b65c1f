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


def run(page, word, launch, folder):
    """What the script of a page with a word in it prints."""
    scripts = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    (script,) = [each for each in scripts if word in each]
    (folder / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-W", "error", *launch, "script.py"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=limited(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.distributed
def test_the_documented_pool_shares_the_work(tmp_path):
    assert "'engine': 'ProcessPoolExecutor'" in run("distributed", "ProcessPoolExecutor", [], tmp_path)
    assert fs.merge(tmp_path / "run").directions >= 32


@pytest.mark.distributed
@pytest.mark.parametrize(("page", "method"), [("distributed", "graph"), ("sharded", "gradient difference")])
def test_the_documented_script_gives_responses_m_tau_and_a_spectrum(page, method, tmp_path):
    printed = run(page, "torchrun", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], tmp_path)
    assert "(3, 4)" in printed
    assert "M_tau Estimate(" in printed
    result, spectrum = fs.load(tmp_path / "multifractal.npz"), fs.load(tmp_path / "spectrum.npz")
    assert result.measured.even.shape[2] == 4
    assert spectrum.converged.all()
    assert spectrum.meta["path"] == method
