"""CUDA C kernels without a build step: NVRTC compiles them at the first call, the driver loads them (``cuda.bindings``)."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastscape.ops._registry import Kernel, imported_later

Argument = Tensor | ctypes.c_int32 | ctypes.c_uint32 | ctypes.c_int64
LANGUAGE = "CUDA C"
_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE / "csrc", _PACKAGE.parent / "csrc")  # of an installation, of a checkout
REMEDIES = {
    "nvrtc": "pip install --upgrade cuda-bindings nvidia-cuda-nvrtc, or install triton, whose kernels serve instead",
    "driver": "update the NVIDIA driver, or install triton, whose kernels serve instead",
}


def source(name: str) -> Path:
    """A file of the folder ``csrc``: inside an installed package, beside it in a checkout."""
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"csrc/{name} is neither in {FOLDERS[0]} nor in {FOLDERS[1]}: reinstall fastscape")


def reason(name: str) -> str:
    """Why the kernels of a source file cannot be compiled here; empty if they can."""
    try:
        found = importlib.util.find_spec("cuda.bindings")
    except ModuleNotFoundError:  # no package ``cuda`` at all
        found = None
    if found is None:
        return "neither triton nor cuda-bindings is installed"
    try:
        source(name)
    except FileNotFoundError as error:
        return str(error)
    return ""


def kernel(module: str, function: str, name: str) -> Kernel:
    """The launcher ``function`` of ``module`` for the kernel in ``name``; where it cannot run the reason why."""
    why = reason(name)
    if why:
        return Kernel(None, LANGUAGE, why)
    return Kernel(imported_later(module, function), LANGUAGE)


def _binding(name: str) -> Any:
    return importlib.import_module(f"cuda.bindings.{name}")


def _call(name: str, function: str, *arguments: Any) -> Any:
    """Call a function of ``cuda.bindings.<name>``; an error names it.

    Raises:
        RuntimeError: the call failed, or its library is not there.
    """
    try:
        status, *values = getattr(_binding(name), function)(*arguments)
    except Exception as error:  # the library is looked for at the first call
        raise RuntimeError(f"{function} cannot be called ({type(error).__name__}: {error}); {REMEDIES[name]}") from error
    if int(status) != 0:
        raise RuntimeError(f"{function} failed with {status.name}; {REMEDIES[name]}")
    return values[0] if values else None


def compiled(name: str, options: Sequence[str], capability: tuple[int, int]) -> bytes:
    """The cubin of a source file.

    Args:
        name: of the file in ``csrc``.
        options: of NVRTC: its macros.
        capability: compute capability of the device, as ``torch.cuda.get_device_capability`` tells.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    path, architecture = source(name), "sm_{}{}".format(*capability)
    program = _call("nvrtc", "nvrtcCreateProgram", path.read_bytes(), path.name.encode(), 0, [], [])
    flags = [f"--gpu-architecture={architecture}", f"--include-path={path.parent}", *options]
    try:
        try:
            _call("nvrtc", "nvrtcCompileProgram", program, len(flags), [flag.encode() for flag in flags])
        except RuntimeError as error:
            log = _fetched("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace")
            raise RuntimeError(f"{path.name} does not compile for {architecture}: {error}\n{log}") from error
        return _fetched("nvrtcGetCUBIN", program)
    finally:
        _call("nvrtc", "nvrtcDestroyProgram", program)


def _fetched(getter: str, program: Any) -> bytes:
    buffer = bytes(_call("nvrtc", f"{getter}Size", program))
    _call("nvrtc", getter, program, buffer)  # fills it in place
    return buffer


@functools.cache
def function(name: str, entry: str, options: tuple[str, ...], device: int) -> Any:
    """A kernel on a device whose context is current: compiled and loaded once, half a second."""
    module = _call("driver", "cuModuleLoadData", compiled(name, options, torch.cuda.get_device_capability(device)))
    return _call("driver", "cuModuleGetFunction", module, entry.encode())


def launch(handle: Any, blocks: int, threads: int, arguments: Sequence[Argument], device: int) -> None:
    """Start a kernel on torch's current stream of the device; tensors are passed as addresses."""
    values = tuple(each.data_ptr() if isinstance(each, Tensor) else each.value for each in arguments)
    types = tuple(ctypes.c_void_p if isinstance(each, Tensor) else type(each) for each in arguments)
    stream = torch.cuda.current_stream(device).cuda_stream
    _call("driver", "cuLaunchKernel", handle, blocks, 1, 1, threads, 1, 1, 0, stream, (values, types), 0)
