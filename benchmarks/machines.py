"""The numerical tests on several machines that this one can emulate: `make machines`.

Environment variables choose the kernels of torch (ATen, oneDNN, MKL), of NumPy's LAPACK and of the native library, which add in
different orders; the number of threads cuts the sums differently. What the tests state must hold for all of them. Results are
merged into ``benchmarks/results/machines.json``, folder by folder, with the name of the processor.

    make machines                                                  every folder, every configuration: an hour
    make machines MACHINES='--quick'                               what is most sensitive, in two configurations: CI
    make machines MACHINES='--only avx2 --folder tests/numerics'
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "machines.json"
FOLDERS = (
    "tests/objective",
    "tests/directions",
    "tests/numerics",
    "tests/evaluation",
    "tests/differences",
    "tests/response",
    "tests/curvature",
    "tests/ops",
    "tests/probes",
)
QUICK = (
    "tests/numerics/test_lanczos.py",
    "tests/probes/tracking/test_davidson.py",
    "tests/numerics/test_trace.py",
    "tests/curvature/forms/test_forwards.py",
    "tests/curvature/forms/test_quadratic.py",
    "tests/differences/test_metamorphic.py",
    "tests/probes/spectrum/test_probe.py",
)
OTHER_CHIPS = ("test_compiled*", "test_triton*", "test_cuda*", "test_gpu*", "test_native*")  # no arithmetic of this processor


@dataclass(frozen=True)
class Configuration:
    """A machine: what its libraries take the processor for, and the threads of their pools.

    Attributes:
        needs: flags of /proc/cpuinfo without which it cannot be emulated.
        threads: OMP_NUM_THREADS.
        environment: variables, named as their library names them.
    """

    needs: str
    threads: int
    environment: dict[str, str]


def _machine(needs: str, threads: int, aten: str, onednn: str, mkl: str, openblas: str, isa: str) -> Configuration:
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE", "FASTSCAPE_ISA")
    return Configuration(needs, threads, dict(zip(names, (aten, onednn, mkl, openblas, isa), strict=True)))


# Three steps up, and two that mix levels as no processor does, to tell which library a failure comes from.
CONFIGURATIONS = {
    "sse": _machine("", 1, "default", "SSE41", "COMPATIBLE", "Nehalem", "baseline"),
    "avx2": _machine("avx2", 2, "avx2", "AVX2", "AVX2", "Haswell", "avx2"),
    "avx512": _machine("avx512f", 1, "avx512", "AVX512_CORE", "AVX512", "SkylakeX", "avx512"),
    "crossed": _machine("avx512f", 2, "default", "AVX512_CORE", "AVX2", "Nehalem", "avx512"),
    "mixed": _machine("avx512f", 2, "avx512", "SSE41", "COMPATIBLE", "SkylakeX", "baseline"),
    "own": Configuration("", 2, {}),
}


def main() -> int:
    """Run the tests; the exit code tells whether all passed."""
    parser = argparse.ArgumentParser(description="The numerical tests on machines that this one can emulate.")
    parser.add_argument("--only", action="append", choices=CONFIGURATIONS, help="a configuration; default all")
    parser.add_argument("--folder", action="append", help="a folder or file of tests; default the numerical ones")
    parser.add_argument("--quick", action="store_true", help="the most sensitive files, in two configurations; writes nothing")
    options = parser.parse_args()
    names = options.only or list(CONFIGURATIONS)[: 2 if options.quick else None]
    folders = options.folder or (QUICK if options.quick else FOLDERS)
    flags, found = _flags(), {}
    for name in names:
        lacking = CONFIGURATIONS[name].needs
        if lacking and lacking not in flags:
            print(f"{name:8} not run: this processor has no {lacking}", flush=True)
            continue
        for folder in [" ".join(folders)] if options.quick else folders:
            found.setdefault(name, {})[folder] = _tested(CONFIGURATIONS[name], folder.split())
            print(f"{name:8} {'the quick ones' if options.quick else folder:30} {_words(found[name][folder])}", flush=True)
            if not options.quick:
                _merge(found)
    return int(any(result["failures"] or not result["passed"] for parts in found.values() for result in parts.values()))


def _tested(configuration: Configuration, folders: list[str]) -> dict[str, object]:
    """Numbers of tests that passed, failed and were skipped, and the names of those that failed."""
    threads = {"OMP_NUM_THREADS": str(configuration.threads), "OMP_WAIT_POLICY": "PASSIVE"}  # others may need the cores
    environment = os.environ | configuration.environment | threads
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *folders]
        run = subprocess.run(
            [*command, *(f"--ignore-glob=*/{pattern}" for pattern in OTHER_CHIPS)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if not report.exists():
            return {"passed": 0, "skipped": 0, "failures": [run.stdout[-2000:]]}
        cases = list(ET.parse(report).getroot().iter("testcase"))
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - skipped - len(failures), "skipped": skipped, "failures": failures}


def _words(result: dict[str, object]) -> str:
    failures = result["failures"]
    assert isinstance(failures, list)
    return f"{result['passed']} passed, {len(failures)} failed, {result['skipped']} skipped" + "".join(
        f"\n         {name}" for name in failures
    )


def _merge(found: dict[str, dict[str, dict[str, object]]]) -> None:
    """Write what was run over what an earlier run of this processor has left."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {"processor": _processor(), "torch": _version("torch"), "numpy": _version("numpy")}
    if {key: kept.get(key) for key in machine} != machine:
        kept = {}
    results = kept.get("configurations", {})
    for name, parts in found.items():
        configuration = CONFIGURATIONS[name]
        row = results.setdefault(name, {})
        row |= {"threads": configuration.threads, "environment": configuration.environment}
        row["folders"] = row.get("folders", {}) | parts
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(machine | {"configurations": results}, indent=1) + "\n")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _information() -> list[tuple[str, str]]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def _processor() -> str:
    """Name, family and model: two generations may share a name."""
    first = dict(reversed(_information()))
    known = (first.get("model name"), first.get("cpu family"), first.get("model"))
    return "{}, family {}, model {}".format(*known) if all(known) else platform.processor() or platform.machine()


def _flags() -> set[str]:
    return set(dict(reversed(_information())).get("flags", "").split())


if __name__ == "__main__":
    sys.exit(main())
