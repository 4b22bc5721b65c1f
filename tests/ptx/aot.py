"""Compile Triton and CUDA C kernels for a chip that is not here, and count what they need.

Neither needs a driver. Triton compiles only where TRITON_INTERPRET is unset, which is not so in a test process:
`compile_in_subprocess` takes lists of jobs elsewhere.

    jobs = [TritonJob("fastscape.kernels.noise:fill", {"out": "*fp32", "n": "i32"}, {"BLOCK": 256}, arch=80)]
    compiled = compile_in_subprocess(jobs, tmp_path)[0]
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from processes import PROCESSOR_SECONDS, limited

MAX_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that one block can have
TESTS = Path(__file__).parents[1]
ARCHS = (80, 90, 100)
CHIPS = (80, pytest.param(90, marks=pytest.mark.slow), 100)  # the one between has kernels like those of its neighbours


@dataclass(frozen=True)
class Compiled:
    """A kernel for one chip; also all that `ptx.simulator.launch` needs.

    Attributes:
        shared: bytes of shared memory of a block.
        num_warps: warps of a block; None where the launch decides.
        stack: bytes of local memory of a thread, spilled registers included.
        spill_stores, spill_loads: bytes.
        sass_instructions: machine instructions, without the padding after the last one.
        hidden: parameters that Triton appends, null pointers here.
    """

    name: str
    arch: int
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)
    num_warps: int | None
    shared: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    sass_instructions: int
    hidden: int = 0


@dataclass(frozen=True)
class CompileFailure:
    """Why a job gave no kernel."""

    error: str


@dataclass(frozen=True)
class TritonJob:
    """A kernel, named ``module:function``, and how to compile it (`compile_triton`).

    ``mutate`` is a text and its replacement in the source of the module: a fault to inject. The text must occur exactly once.
    """

    kernel: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    arch: int
    divisible: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    mutate: tuple[str, str] | None = None


@dataclass(frozen=True)
class CudaJob:
    """A CUDA C source file and how to compile it (`compile_cuda`); its folder is searched for headers."""

    path: Path
    arch: int
    name: str | None = None
    options: Sequence[str] = ()
    mutate: tuple[str, str] | None = None


Job = TritonJob | CudaJob


def compile_triton(
    fn: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    *,
    arch: int,
    divisible: Sequence[str] = (),
    num_warps: int = 4,
    **options: Any,
) -> Compiled:
    """Compile a ``triton.jit`` function.

    Args:
        fn: the function; autotuners and heuristics around it are taken off.
        signature: type of each argument that is no constexpr: ``*fp32``, ``i32``, ``*i64``.
        constexprs: value of each constexpr.
        arch: 80, 90 or 100.
        divisible: pointers aligned to 16 bytes and integers divisible by 16, as a launch would find them.
        num_warps: warps of a block.
        options: further options of Triton: ``num_stages``, ``enable_fp_fusion``.

    Raises:
        RuntimeError: TRITON_INTERPRET is set.
        NotImplementedError: the kernel needs scratch memory.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError("TRITON_INTERPRET must be unset to compile; use compile_in_subprocess")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    while not isinstance(fn, triton.runtime.JITFunction):
        fn = fn.fn
    types = {**signature, **dict.fromkeys(constexprs, "constexpr")}
    unknown = [name for name in (*types, *divisible) if name not in fn.arg_names]
    missing = [name for name in fn.arg_names if name not in types]
    if unknown or missing:
        raise ValueError(f"signature must name the arguments of {fn.__name__}, got unknown {unknown} and missing {missing}")
    attributes = {(fn.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(fn, {name: types[name] for name in fn.arg_names}, dict(constexprs), attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": num_warps, **options})
    metadata = kernel.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise NotImplementedError(f"scratch memory of {metadata.name}")
    ptx, cubin = kernel.asm["ptx"], kernel.asm["cubin"]
    flags = [] if metadata.enable_fp_fusion else ["--fmad=false"]
    resources = _resources(_assembler_log(ptx, arch, flags), metadata.name)
    counted = _sass_instructions(cubin, metadata.name)
    head = ptx[ptx.index(".entry") :].partition("{")[0]  # constants of functions of libdevice come before, in braces too
    hidden = len(re.findall(r"\.param\b", head)) - len(signature)
    return Compiled(metadata.name, arch, ptx, cubin, metadata.num_warps, metadata.shared, *resources, counted, hidden)


def compile_cuda(
    source: str, *, arch: int, name: str | None = None, options: Sequence[str] = (), label: str = "kernel.cu"
) -> Compiled:
    """Compile CUDA C with NVRTC.

    Args:
        source: CUDA C text; kernels are ``extern "C"``.
        arch: 80, 90 or 100.
        name: the kernel; default: the only one of the source.
        options: further options of NVRTC.
        label: file name in messages.

    Raises:
        ValueError: the source does not compile, or ``name`` does not choose one of its kernels.
    """
    ptx, cubin, log = _nvrtc(source, label, [f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v", *options])
    entries = re.findall(r"\.entry\s+([\w$]+)", ptx)
    if name is None and len(entries) == 1:
        name = entries[0]
    if name not in entries:
        raise ValueError(f"name must be one of {entries}, got {name!r}")
    used = re.search(rf"entry function '{name}'.*?Used \d+ registers([^\n]*)", log, re.DOTALL)
    shared = re.search(r"(\d+) bytes smem", used[1]) if used else None
    resources = _resources(log, name)
    return Compiled(name, arch, ptx, cubin, None, int(shared[1]) if shared else 0, *resources, _sass_instructions(cubin, name))


def _nvrtc(source: str, label: str, options: Sequence[str]) -> tuple[str, bytes, str]:
    """PTX, cubin and the assembler's report."""
    from cuda.bindings import nvrtc

    def call(function: Any, *arguments: Any) -> Any:
        status, *values = function(*arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise ValueError(f"source must compile, NVRTC returned {status.name}")
        return values[0] if values else None

    def fetch(size: Any, get: Any) -> bytes:
        buffer = bytes(call(size, program))
        call(get, program, buffer)
        return buffer

    program = call(nvrtc.nvrtcCreateProgram, source.encode(), label.encode(), 0, [], [])
    try:
        try:
            call(nvrtc.nvrtcCompileProgram, program, len(options), [option.encode() for option in options])
        finally:
            log = fetch(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).rstrip(b"\0").decode()
        ptx = fetch(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX).rstrip(b"\0").decode()
        return ptx, fetch(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN), log
    except ValueError as error:
        raise ValueError(f"{error}:\n{log}") from error
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _assembler_log(ptx: str, arch: int, flags: Sequence[str]) -> str:
    """What ptxas reports with the flags of Triton; it alone tells spills from other local memory."""
    from triton import knobs

    tool = knobs.nvidia.ptxas_blackwell if arch >= 100 else knobs.nvidia.ptxas
    target = re.search(r"\.target\s+(\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [tool.path, "-lineinfo", "-v", "--regAllocOptLevel=2", *flags, f"--gpu-name={target}", source]
        return subprocess.run([*command, "-o", f"{folder}/kernel.o"], capture_output=True, text=True, check=True).stderr


def _resources(log: str, name: str) -> tuple[int, int, int, int]:
    """Registers, stack, spill stores and spill loads from the report of ptxas."""
    after = log[log.index(f"entry function '{name}'") :]
    stack, stores, loads = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", after
    ).groups()
    return int(re.search(r"Used (\d+) registers", after)[1]), int(stack), int(stores), int(loads)


def _sass_instructions(cubin: bytes, name: str) -> int:
    """Instructions of the kernel in its cubin, up to the padding with NOP."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-fun", name, path]
        return count_instructions(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def count_instructions(listing: str) -> int:
    """Instructions in a listing by cuobjdump, without the NOPs at its end."""
    found = re.findall(r"/\*[0-9a-f]{4,}\*/\s+([^;]*?)\s*;", listing)
    while found and found[-1] == "NOP":
        found.pop()
    return len(found)


def run_job(job: Job, folder: Path) -> Compiled | CompileFailure:
    """Compile one job in this process; ``folder`` takes mutated sources."""
    try:
        if isinstance(job, CudaJob):
            source = _mutated(Path(job.path).read_text(encoding="utf-8"), job.mutate)
            options = (f"--include-path={Path(job.path).parent}", *job.options)
            return compile_cuda(source, arch=job.arch, name=job.name, options=options, label=Path(job.path).name)
        module, _, function = job.kernel.partition(":")
        fn = getattr(_module(module, job.mutate, folder), function)
        return compile_triton(fn, job.signature, job.constexprs, arch=job.arch, divisible=job.divisible, **job.options)
    except Exception:  # any compiler's error belongs to its job
        return CompileFailure(traceback.format_exc())


def _mutated(source: str, mutate: tuple[str, str] | None) -> str:
    if mutate is None:
        return source
    if source.count(mutate[0]) != 1:
        raise ValueError(f"mutate must name a text that occurs once, got {source.count(mutate[0])} times {mutate[0]!r}")
    return source.replace(*mutate)


def _module(name: str, mutate: tuple[str, str] | None, folder: Path) -> ModuleType:
    """The module, or an altered copy of it beside it: same package, fresh name, and a file that Triton reads its source from."""
    if mutate is None:
        return importlib.import_module(name)
    original = importlib.util.find_spec(name)
    if original is None or original.origin is None:
        raise ValueError(f"kernel must be in a module with a source file, got {name!r}")
    source = _mutated(Path(original.origin).read_text(encoding="utf-8"), mutate)
    fresh = f"{name}_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    if fresh not in sys.modules:
        path = folder / f"{fresh}.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(fresh, path)
        sys.modules[fresh] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[fresh])
    return sys.modules[fresh]


class Kernels:
    """Outcomes of jobs by key, compiled once the first of their chip is asked for."""

    def __init__(self, jobs: Mapping[Any, Job], folder: Path) -> None:
        self.jobs, self._folder = jobs, folder
        self._found: dict[Any, Compiled | CompileFailure] = {}

    def __getitem__(self, key: Any) -> Compiled | CompileFailure:
        if key not in self._found:
            mine = {other: job for other, job in self.jobs.items() if job.arch == self.jobs[key].arch}
            self._found |= dict(zip(mine, compile_in_subprocess(list(mine.values()), self._folder), strict=True))
        return self._found[key]


def compile_in_subprocess(
    jobs: Sequence[Job], folder: Path, *, processor: int = PROCESSOR_SECONDS
) -> list[Compiled | CompileFailure]:
    """Compile ``jobs`` in a process of their own, where TRITON_INTERPRET is unset; skip the test where that takes too long.

    Args:
        jobs: any number: a process costs seconds, a kernel about half a second.
        folder: takes Triton's cache and the files that pass between the processes; what it has compiled before is reused.
        processor: seconds of processor time, not of a clock, for all jobs, and for one run of the assembler.

    Returns:
        For each job its kernel or its failure. A compiler that crashes costs its own job alone.
    """
    results: list[Compiled | CompileFailure] = []
    while len(results) < len(jobs):
        done, message = _run_worker(jobs[len(results) :], Path(folder), processor)
        results += done
        if message is None:
            break
        results.append(CompileFailure(message))
    if any(isinstance(result, CompileFailure) and "SIGXCPU" in result.error for result in results):
        pytest.skip(f"the compiler took more than {processor} s of processor time on this machine")
    return results


def _run_worker(jobs: Sequence[Job], folder: Path, processor: int) -> tuple[list[Compiled | CompileFailure], str | None]:
    """Results up to the job that ended the process, and how it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    requests, answers = folder / "requests.pickle", folder / "answers.pickle"
    requests.write_bytes(pickle.dumps(list(jobs)))
    answers.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(TESTS), str(TESTS.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "ptx.worker", str(requests), str(answers)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, preexec_fn=limited(processor))
    ended = signal.Signals(-run.returncode).name if run.returncode < 0 else f"status {run.returncode}"
    done = list(_unpickled(answers)) if answers.exists() else []
    return done, None if len(done) == len(jobs) else f"compiler process ended with {ended}\n{run.stderr[-4000:]}"


def _unpickled(path: Path) -> list[Compiled | CompileFailure]:
    """The whole objects of a stream that may end in the middle of one."""
    found = []
    with path.open("rb") as stream:
        while True:
            try:
                found.append(pickle.load(stream))
            except (EOFError, pickle.UnpicklingError):
                return found
