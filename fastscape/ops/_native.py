"""The C++ library behind the CPU kernels: found, checked and called through ctypes; its work runs in torch's thread pool.

``FASTSCAPE_NATIVE=0`` turns it off, ``FASTSCAPE_NATIVE=require`` makes its absence an ImportError; otherwise a missing library is
silent (``fs.status()`` names the reason) and a broken one gives one warning. ``FASTSCAPE_ISA=baseline|avx2|avx512`` forces an
instruction set in place of the best that the processor has, to have the arithmetic of another machine.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastscape.ops._library_file import damage_of
from fastscape.ops._registry import Kernel
from fastscape.ops._tasks import DISTRIBUTIONS, TYPES, Layout, Noise, PerturbTask, address

ABI = 4  # of csrc/cpu/api.h
ISAS = ("baseline", "avx2", "avx512")
STREAM_BYTES = 1 << 25  # results above this leave the caches anyway: write around them
_PATH = Path(__file__).parents[1] / "_native.so"
_ENTRIES = (
    *("perturb", "dot", "gram", "update", "pointwise", "affine", "relu_line", "isa", "set_isa"),
    *("softmax_difference", "layer_norm_difference", "cross_entropy_difference", "max_pool_difference"),
    *("largest", "fixed_sum", "fixed_value"),
)


@dataclass(frozen=True)
class Library:
    """The loaded library, or the reason why there is none.

    Attributes:
        reason: why the library does not answer; empty if it does.
        path: its file.
        forced: instruction set that the environment variable ``FASTSCAPE_ISA`` asked for; empty if it is the processor's best.
    """

    reason: str
    path: Path
    forced: str = ""
    _entries: dict[str, ctypes._NamedFuncPointer] = field(default_factory=dict, repr=False)
    _parallel_for: int = 0

    @property
    def available(self) -> bool:
        """Whether the library answers."""
        return not self.reason

    @property
    def isa(self) -> str:
        """Instruction set in force: ``"baseline"``, ``"avx2"`` or ``"avx512"``."""
        return ISAS[int(self._entries["isa"]())]

    def set_isa(self, isa: str) -> str:
        """Force an instruction set that the processor has (tests, benchmarks); returns the one in force."""
        if isa not in ISAS:
            raise ValueError(f"isa must be one of {', '.join(ISAS)}, got {isa!r}")
        return ISAS[int(self._entries["set_isa"](ctypes.c_int(ISAS.index(isa))))]

    def bind(self, entry: str, task: ctypes.Structure) -> Callable[[], None]:
        """A function that runs a task in torch's thread pool, as the task then is; it keeps the task alive."""
        function, pool, reference = self._entries[entry], ctypes.c_void_p(self._parallel_for), ctypes.byref(task)

        def run() -> None:
            error = function(pool, reference)
            if error:
                raise RuntimeError(f"torch's thread pool failed in the native kernel {entry!r} with code {error}")

        return run

    def call(self, entry: str, task: ctypes.Structure) -> None:
        """Run a task in torch's thread pool."""
        self.bind(entry, task)()


def load(path: Path = _PATH, mode: str | None = None, isa: str | None = None) -> Library:
    """Load the library.

    Args:
        path: its file.
        mode: ``"0"`` (off), ``"require"`` or ``""``; default the environment variable ``FASTSCAPE_NATIVE``.
        isa: instruction set to force, or ``""`` for the processor's best; default the environment variable ``FASTSCAPE_ISA``.

    Raises:
        ImportError: no usable library and mode ``"require"``.
        ValueError: another mode or instruction set, or one that the processor lacks.
    """
    isa = os.environ.get("FASTSCAPE_ISA", "") if isa is None else isa
    if isa and isa not in ISAS:
        raise ValueError(f"FASTSCAPE_ISA must be one of {', '.join(ISAS)} or not set, got {isa!r}")
    mode = os.environ.get("FASTSCAPE_NATIVE", "") if mode is None else mode
    if mode not in ("", "0", "require"):
        raise ValueError(f"FASTSCAPE_NATIVE must be 'require', '0' or not set, got {mode!r}")
    if mode == "0":
        return Library("turned off by FASTSCAPE_NATIVE=0", path)
    if not path.exists():
        why = f"{path.name} was not built: install g++ 12 or newer, then fastscape again"
        return _without(why, path, mode, quiet=True)
    damage = damage_of(path)
    if damage:
        return _without(f"{path} {damage}: install fastscape again", path, mode)
    try:
        found = ctypes.CDLL(str(path))
        abi = int(found.fastscape_abi())
        if abi != ABI:
            return _without(f"{path} has ABI version {abi}, this package needs {ABI}: install fastscape again", path, mode)
        entries = {name: getattr(found, f"fastscape_{name}") for name in _ENTRIES}
        torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel_for = ctypes.cast(torch_library.torch_parallel_for, ctypes.c_void_p).value or 0
    except (OSError, AttributeError) as error:
        return _without(f"{path} cannot be used: install fastscape again ({error})", path, mode)
    library = Library("", path, isa, entries, parallel_for)
    best = library.isa
    if isa and library.set_isa(isa) != isa:
        raise ValueError(f"FASTSCAPE_ISA must be an instruction set of this processor, got {isa!r}; its best is {best!r}")
    return library


def _without(reason: str, path: Path, mode: str, *, quiet: bool = False) -> Library:
    if mode == "require":
        raise ImportError(f"FASTSCAPE_NATIVE=require, but {reason}")
    if not quiet:
        warnings.warn(f"{reason}; the PyTorch references run instead", RuntimeWarning, stacklevel=4)
    return Library(reason, path)


@dataclass
class NativeTask:
    """A prepared C++ call: its arrays are allocated, what varies is filled in."""

    task: PerturbTask
    layout: Layout
    indices: NDArray[np.uint32]
    scales: NDArray[np.float64]
    radii: NDArray[np.float64]
    outputs: NDArray[np.int64]

    def __post_init__(self) -> None:
        self._call = library.bind("perturb", self.task)

    def aim(self, seed: int, indices: Sequence[int], scales: NDArray[np.float64] | float) -> None:
        """Choose K directions and their scales, ``[K, pieces]``."""
        self.task.noise.seed = seed & 0xFFFFFFFFFFFFFFFF
        self.indices[:] = indices
        self.scales[:] = scales

    def write(self, radii: Sequence[float]) -> None:
        """Write the results for R radii."""
        self.radii[:] = radii
        self._call()

    def run(self, seed: int, indices: Sequence[int], scales: NDArray[np.float64] | float, radii: Sequence[float]) -> None:
        """:meth:`aim` and :meth:`write`."""
        self.aim(seed, indices, scales)
        self.write(radii)


def native_task(
    layout: Layout,
    outputs: NDArray[np.int64],
    directions: int,
    radii: int,
    dtype: torch.dtype,
    distribution: str,
    *,
    raw_float64: bool = False,
) -> NativeTask:
    """Set up a C++ call that writes to the addresses ``outputs``, ``[K * R, pieces]``, in ``dtype``."""
    arrays = (np.zeros(directions, np.uint32), np.zeros((directions, layout.size)), np.zeros(radii))
    indices, scales, steps = arrays
    task = PerturbTask(
        segments=layout.segments,
        noise=Noise(0, 0, DISTRIBUTIONS[distribution]),
        directions=directions,
        indices=address(indices),
        scales=address(scales),
        radii_count=radii,
        radii=address(steps),
        outputs=address(outputs),
        out_type=TYPES[dtype],
        raw_float64=raw_float64,
        streaming=int(layout.counts.sum()) * dtype.itemsize * len(outputs) > STREAM_BYTES,
        block_ends=address(layout.block_ends),
    )
    return NativeTask(task, layout, indices, scales, steps, outputs)


library = load()


def kernel(function: Callable[..., Any], limits: str = "") -> Kernel:
    """A C++ kernel of an op; without the library the reason why there is none."""
    return Kernel(function if library.available else None, "C++", library.reason, limits)
