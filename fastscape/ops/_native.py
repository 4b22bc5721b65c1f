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
from torch import Tensor

from fastscape.ops._registry import Kernel

ABI = 3  # of csrc/cpu/api.h
ISAS = ("baseline", "avx2", "avx512")
STREAM_BYTES = 1 << 25  # results above this leave the caches anyway: write around them
BLOCK, SUM_BLOCK = 2048, 16384  # elements, as in csrc/cpu/api.h
ROW_ELEMENTS = 4096  # of a block of rows, as in csrc/cpu/api.h
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
DISTRIBUTIONS = {"gaussian": 0, "rademacher": 1}
_PATH = Path(__file__).parents[1] / "_native.so"
_ENTRIES = (
    "fastscape_perturb",
    "fastscape_dot",
    "fastscape_gram",
    "fastscape_update",
    "fastscape_pointwise",
    "fastscape_affine",
    "fastscape_softmax_difference",
    "fastscape_layer_norm_difference",
    "fastscape_cross_entropy_difference",
    "fastscape_max_pool_difference",
    "fastscape_relu_line",
    "fastscape_isa",
    "fastscape_set_isa",
    "fastscape_softmax_difference",
    "fastscape_layer_norm_difference",
    "fastscape_cross_entropy_difference",
    "fastscape_max_pool_difference",
)

_pointer, _int64 = ctypes.c_void_p, ctypes.c_int64


class _Segments(ctypes.Structure):
    _fields_ = (
        ("size", _int64),
        ("weights", _pointer),
        ("raw", _pointer),
        ("counts", _pointer),
        ("firsts", _pointer),
        ("ids", _pointer),
        ("types", _pointer),
    )


class Noise(ctypes.Structure):
    """Key of the generator."""

    _fields_ = (("seed", ctypes.c_uint64), ("stream", ctypes.c_uint32), ("distribution", ctypes.c_int32))


class PerturbTask(ctypes.Structure):
    """Mirror of PerturbTask in csrc/cpu/api.h."""

    _fields_ = (
        ("segments", _Segments),
        ("noise", Noise),
        ("directions", _int64),
        ("indices", _pointer),
        ("scales", _pointer),
        ("radii_count", _int64),
        ("radii", _pointer),
        ("outputs", _pointer),
        ("out_type", ctypes.c_int8),
        ("raw_float64", ctypes.c_bool),
        ("streaming", ctypes.c_bool),
        ("block_ends", _pointer),
    )


class DotTask(ctypes.Structure):
    """Mirror of DotTask in csrc/cpu/api.h."""

    _fields_ = (
        ("segments", _Segments),
        ("noise", Noise),
        ("directions", _int64),
        ("indices", _pointer),
        ("partial", _pointer),
        ("sums", _pointer),
        ("block_ends", _pointer),
    )


class GramTask(ctypes.Structure):
    """Mirror of GramTask in csrc/cpu/api.h."""

    _fields_ = (
        ("left", _pointer),
        ("right", _pointer),
        ("left_rows", _int64),
        ("right_rows", _int64),
        ("left_stride", _int64),
        ("right_stride", _int64),
        ("length", _int64),
        ("type", ctypes.c_int8),
        ("partial", _pointer),
    )


class UpdateTask(ctypes.Structure):
    """Mirror of UpdateTask in csrc/cpu/api.h."""

    _fields_ = (
        ("left", _pointer),
        ("right", _pointer),
        ("out", _pointer),
        ("left_rows", _int64),
        ("right_rows", _int64),
        ("left_stride", _int64),
        ("right_stride", _int64),
        ("length", _int64),
        ("type", ctypes.c_int8),
        ("coefficients", _pointer),
        ("squares", _pointer),
    )


class LaneTask(ctypes.Structure):
    """Mirror of LaneTask in csrc/cpu/api.h."""

    _fields_ = (
        ("x", _pointer),
        ("lanes", _pointer),
        ("out", _pointer),
        ("radii", _pointer),
        ("size", _int64),
        ("directions", _int64),
        ("radii_count", _int64),
        ("parts", _int64),
        ("lane_radii", _int64),
        ("base_type", ctypes.c_int8),
        ("lane_type", ctypes.c_int8),
    )


class PointwiseTask(ctypes.Structure):
    """Mirror of PointwiseTask in csrc/cpu/api.h."""

    _fields_ = (("lanes", LaneTask), ("kind", ctypes.c_int32), ("options", ctypes.c_double * 3))


class AffineTask(ctypes.Structure):
    """Mirror of AffineTask in csrc/cpu/api.h."""

    _fields_ = (
        ("lanes", LaneTask),
        ("channels", _int64),
        ("inner", _int64),
        ("scale", _pointer),
        ("scale_direction", _pointer),
        ("shift_direction", _pointer),
    )


class RowTask(ctypes.Structure):
    """Mirror of RowTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "lanes", "out", "scratch", "radii")),
        *((name, _int64) for name in ("directions", "lane_radii", "radii_count", "rows", "length")),
        *((name, _pointer) for name in ("weight", "weight_direction", "bias_direction")),
        ("eps", ctypes.c_double),
        ("target", _pointer),
        ("x_type", ctypes.c_int8),
        ("lane_type", ctypes.c_int8),
        ("second", ctypes.c_bool),
        ("centred", ctypes.c_bool),
    )


class PoolTask(ctypes.Structure):
    """Mirror of PoolTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "lanes", "out", "radii")),
        *((name, _int64) for name in ("directions", "lane_radii", "radii_count", "planes", "height", "width")),
        *((name, _int64 * 2) for name in ("kernel", "stride", "padding", "dilation", "output")),
        ("x_type", ctypes.c_int8),
        ("lane_type", ctypes.c_int8),
        ("second", ctypes.c_bool),
    )


class ReluLineTask(ctypes.Structure):
    """Mirror of ReluLineTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("inputs", "weight", "bias", "head", "head_bias", "points", "out", "tiles", "head_tiles")),
        *((name, _int64) for name in ("rows", "units", "outputs", "classes", "points_count")),
        ("type", ctypes.c_int8),
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
        return ISAS[int(self._entries["fastscape_isa"]())]

    def set_isa(self, isa: str) -> str:
        """Force an instruction set that the processor has (tests, benchmarks); returns the one in force."""
        if isa not in ISAS:
            raise ValueError(f"isa must be one of {', '.join(ISAS)}, got {isa!r}")
        return ISAS[int(self._entries["fastscape_set_isa"](ctypes.c_int(ISAS.index(isa))))]

    def bind(self, entry: str, task: ctypes.Structure) -> Callable[[], None]:
        """A function that runs a task in torch's thread pool, as the task then is; it keeps the task alive."""
        function, pool, reference = self._entries[f"fastscape_{entry}"], _pointer(self._parallel_for), ctypes.byref(task)

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
    try:
        found = ctypes.CDLL(str(path))
        abi = int(found.fastscape_abi())
        if abi != ABI:
            return _without(f"{path} has ABI version {abi}, this package needs {ABI}: install fastscape again", path, mode)
        entries = {name: getattr(found, name) for name in _ENTRIES}
        torch_library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel_for = ctypes.cast(torch_library.torch_parallel_for, _pointer).value or 0
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


def address(array: NDArray[np.generic]) -> int:
    """Address of an array's data."""
    return array.ctypes.data


class Layout:
    """Arrays that describe a list of tensors to the kernels, cut in ``groups`` of equal, contiguous pieces each.

    ``segments`` points into arrays that this object keeps alive; the tensors must outlive it too.
    """

    def __init__(self, ids: Sequence[int], sizes: Sequence[int], groups: Sequence[int], block: int) -> None:
        lengths = np.array([size // max(group, 1) for size, group in zip(sizes, groups, strict=True)], dtype=np.int64)
        self._groups = np.array(groups, dtype=np.int64)
        within = np.arange(self._groups.sum()) - np.repeat(self._groups.cumsum() - self._groups, self._groups)
        counts = np.repeat(lengths, self._groups)
        self.counts = np.ascontiguousarray(counts)
        self.firsts = np.ascontiguousarray(within * counts)
        self.ids = np.repeat(np.array([word & 0xFFFFFFFF for word in ids], dtype=np.uint32), self._groups)
        self.block_ends = np.cumsum(-(-self.counts // block), dtype=np.int64)
        self.types = np.zeros(len(self.counts), dtype=np.int8)
        self._kept: list[NDArray[np.int64]] = []
        self.segments = _Segments(
            size=len(self.counts),
            counts=address(self.counts),
            firsts=address(self.firsts),
            ids=address(self.ids),
            types=address(self.types),
        )

    @property
    def size(self) -> int:
        """Number of pieces."""
        return len(self.counts)

    @property
    def blocks(self) -> int:
        """Number of blocks in all."""
        return int(self.block_ends[-1]) if self.size else 0

    def pieces(self, tensors: Sequence[Tensor]) -> NDArray[np.int64]:
        """Addresses of the pieces of contiguous tensors."""
        starts = np.repeat(np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64), self._groups)
        widths = np.repeat(np.array([tensor.element_size() for tensor in tensors], dtype=np.int64), self._groups)
        return starts + self.firsts * widths

    def use_weights(self, tensors: Sequence[Tensor]) -> None:
        """Point the segments at these tensors, of any types among :data:`TYPES`."""
        self.types[:] = np.repeat(np.array([TYPES[tensor.dtype] for tensor in tensors], dtype=np.int8), self._groups)
        self._kept.append(self.pieces(tensors))
        self.segments.weights = address(self._kept[-1])

    def use_raw(self, tensors: Sequence[Tensor]) -> None:
        """Take the directions from these tensors instead of generating them."""
        self._kept.append(self.pieces(tensors))
        self.segments.raw = address(self._kept[-1])


def lane_task(x: Tensor, lanes: Tensor, radii: Tensor, out: Tensor) -> LaneTask:
    """The fields that contiguous tensors fill, whatever is done with them; the tensors must outlive the task."""
    return LaneTask(
        x=x.data_ptr(),
        lanes=lanes.data_ptr(),
        out=out.data_ptr(),
        radii=radii.data_ptr(),
        size=x.numel(),
        directions=lanes.shape[0],
        radii_count=len(radii),
        parts=lanes.shape[1],
        lane_radii=lanes.shape[2],
        base_type=TYPES[x.dtype],
        lane_type=TYPES[lanes.dtype],
    )


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
