"""Checks of the doctor on a machine: kernels, device, threads, extras, arithmetic, versions, temporary files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastscape._checks import first_line
from fastscape._state import PRECISION_LEAVES, legacy
from fastscape.ops import status
from fastscape.probes.doctor.result import Finding

EXTRAS = {  # module: what it is for, and the extra that brings it
    "matplotlib": ("figures and pages", "report"),
    "jinja2": ("pages", "report"),
    "torchvision": ("zoo:resnet18 and torchvision: models", "vision"),
    "sklearn": ("zoo:digits", "zoo"),
}
_LEAST = (2, 10)  # of torch: the precision settings that probes switch off and restore
_NAMES = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
_DENORMAL = 1e-40  # of float32


def machine_findings() -> Iterator[Finding]:
    """One finding per check; a check that fails is a finding."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("native kernels", _native),
        ("accelerator", _accelerator),
        ("threads", _threads),
        ("extras", _extras),
        ("arithmetic", _arithmetic),
        ("versions", _versions),
        ("temporary files", _temporary),
    )
    for name, check in checks:
        try:
            yield check()
        except Exception as error:  # a doctor that fails on a strange machine is of no use there
            yield Finding(name, "warning", f"could not be checked: {type(error).__name__}: {first_line(error)}")


def _native() -> Finding:
    found = status()
    if found.native:
        count = sum(answer.device == "CPU" and answer.implementation != "reference" for answer in found.answers)
        forced = " (forced by FASTSCAPE_ISA)" * found.native_forced
        words = f"C++ library, instruction set {found.native}{forced}, runs {count} operations"
        wider = _instructions() & {"avx2", "avx512f"}
        if found.native == "baseline" and wider:
            remedy = "unset FASTSCAPE_ISA" if forced else "reinstall fastscape-probes"
            return Finding("native kernels", "warning", f"{words}; this processor has {', '.join(sorted(wider))}", remedy)
        return Finding("native kernels", "ok", words)
    remedy = "reinstall with a C++ compiler: pip install --force-reinstall --no-deps fastscape-probes"
    if os.environ.get("FASTSCAPE_NATIVE") == "0":
        remedy = "unset FASTSCAPE_NATIVE"
    return Finding(
        "native kernels",
        "warning",
        f"not used ({found.native_reason}): falling back to PyTorch: about 40 ns per random normal instead of 1 to 3",
        remedy,
    )


def _instructions() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return set(next(line for line in lines if line.startswith("flags")).split())
    except (OSError, StopIteration):
        return set()


def _accelerator() -> Finding:
    triton = importlib.util.find_spec("triton") is not None
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        slow = sorted(
            {answer.reason for answer in status().answers if answer.device == "CUDA" and answer.implementation == "reference"}
        )
        if not triton:
            words = f"{name}, without Triton: {'; '.join(slow) or 'CUDA C kernels serve where there are any'}"
            return Finding("accelerator", "warning", words, "pip install triton")
        return Finding("accelerator", "ok", f"{name}, Triton {_version('triton')}")
    if torch.version.cuda is None and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        words = f"an NVIDIA driver is here, but torch {torch.__version__} is built without CUDA"
        return Finding("accelerator", "warning", words, "install torch for CUDA, see pytorch.org")
    if torch.version.cuda is not None and Path("/dev/nvidia0").exists():
        words = "an NVIDIA device is here, but torch cannot use it"
        return Finding("accelerator", "warning", words, "check nvidia-smi, the driver's version and CUDA_VISIBLE_DEVICES")
    return Finding(
        "accelerator", "ok", f"no CUDA device; probes run on the CPU (Triton {'is' if triton else 'is not'} installed)"
    )


def cores() -> float:
    """Processors that this process may use: its affinity, or the quota of its container where that is less."""
    count = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return min(count, float(quota) / float(period)) if quota != "max" else count
    except (OSError, ValueError):
        return count


def _threads() -> Finding:
    threads, usable, requested = torch.get_num_threads(), cores(), os.environ.get("OMP_NUM_THREADS")
    words = f"torch uses {threads} of {usable:g} processors" + (f", OMP_NUM_THREADS={requested}" if requested is not None else "")
    if threads > usable:
        remedy = f"torch.set_num_threads({max(1, int(usable))}): more threads than processors wait for one another"
        return Finding("threads", "warning", words, remedy)
    if threads < usable / 2:  # torch takes one per physical core, of which hyperthreading shows two
        remedy = f"set OMP_NUM_THREADS={int(usable)}, or torch.set_num_threads, unless other work runs beside this"
        return Finding("threads", "warning", words, remedy)
    return Finding("threads", "ok", words)


def _extras() -> Finding:
    missing = {module: EXTRAS[module] for module in EXTRAS if importlib.util.find_spec(module) is None}
    if not missing:
        return Finding("extras", "ok", f"{', '.join(EXTRAS)} are installed")
    words = "; ".join(f"{module} is not installed ({use})" for module, (use, _) in missing.items())
    names = ",".join(sorted({extra for _, extra in missing.values()}))
    return Finding("extras", "warning", words, f"pip install 'fastscape-probes[{names}]'")


def _arithmetic() -> Finding:
    """TF32 and its like are switched off in probes; flushed denormals cannot be seen by them, and are not."""
    backends: Any = torch.backends
    leaves = [
        (name, leaf) for name, leaf in zip(_NAMES, PRECISION_LEAVES, strict=True) if torch.cuda.is_available() or "cu" not in name
    ]
    reduced = [f"{leaf.fp32_precision} in {name}" for name, leaf in leaves if leaf.fp32_precision not in ("none", "ieee")]
    if legacy(torch.get_float32_matmul_precision) not in (None, "highest"):
        reduced.append(f"float32 matmul precision {torch.get_float32_matmul_precision()!r}")
    if legacy(lambda: backends.cudnn.allow_tf32) and torch.cuda.is_available():
        reduced.append("TF32 in cuDNN")
    reduced += [f"autocast on {device}" for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if backends.cudnn.benchmark:
        reduced.append("cuDNN benchmarking")
    words = (
        f"reduced precision is set ({', '.join(reduced)}): probes switch it off and restore it; your own code uses it"
        if reduced
        else "plain float32; probes switch TF32 and reduced precision off whatever is set"
    )
    if float(torch.tensor(_DENORMAL) * 1.0) == 0.0:
        remedy = "torch.set_flush_denormal(False)"
        return Finding("arithmetic", "warning", f"numbers below 1e-38 are flushed to zero; {words}", remedy)
    return Finding("arithmetic", "ok", words)


def _versions() -> Finding:
    names = ("fastscape-probes", "torch", "numpy", "scipy", "triton")
    found = {name: _version(name) for name in names}
    words = ", ".join(f"{name} {version}" for name, version in found.items() if version) + f", Python {platform.python_version()}"
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers < _LEAST:
        least = ".".join(map(str, _LEAST))
        remedy = f"pip install --upgrade 'torch>={least}'"
        return Finding("versions", "error", f"{words}: torch before {least} has no settings of precision to switch off", remedy)
    return Finding("versions", "ok", words)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _temporary() -> Finding:
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        words = (
            f"no temporary directory can be written to ({error.strerror or error}): interrupted runs have no place to be saved"
        )
        return Finding("temporary files", "warning", words, "set TMPDIR to a directory with room, and pass --out to every run")
    return Finding("temporary files", "ok", f"{folder} can be written to")
