"""What the C++ kernels are told: mirrors of the structures of csrc/cpu/api.h, and the tensors that they point to."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK, SUM_BLOCK = 2048, 16384  # elements, as in csrc/cpu/api.h
ROW_ELEMENTS = 4096  # of a block of rows, as in csrc/cpu/api.h
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
DISTRIBUTIONS = {"gaussian": 0, "rademacher": 1}

_pointer, _int64, _int8 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int8


class _Segments(ctypes.Structure):
    _fields_ = (("size", _int64), *((name, _pointer) for name in ("weights", "raw", "counts", "firsts", "ids", "types")))


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
        ("out_type", _int8),
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
        *((name, _pointer) for name in ("indices", "partial", "sums", "block_ends")),
    )


class GramTask(ctypes.Structure):
    """Mirror of GramTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("left", "right")),
        *((name, _int64) for name in ("left_rows", "right_rows", "left_stride", "right_stride", "length")),
        ("type", _int8),
        ("partial", _pointer),
    )


class UpdateTask(ctypes.Structure):
    """Mirror of UpdateTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("left", "right", "out")),
        *((name, _int64) for name in ("left_rows", "right_rows", "left_stride", "right_stride", "length")),
        ("type", _int8),
        *((name, _pointer) for name in ("coefficients", "squares")),
    )


class LaneTask(ctypes.Structure):
    """Mirror of LaneTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "lanes", "out", "radii")),
        *((name, _int64) for name in ("size", "directions", "radii_count", "parts", "lane_radii")),
        *((name, _int8) for name in ("base_type", "lane_type")),
    )


class PointwiseTask(ctypes.Structure):
    """Mirror of PointwiseTask in csrc/cpu/api.h."""

    _fields_ = (("lanes", LaneTask), ("kind", ctypes.c_int32), ("options", ctypes.c_double * 3))


class AffineTask(ctypes.Structure):
    """Mirror of AffineTask in csrc/cpu/api.h."""

    _fields_ = (
        ("lanes", LaneTask),
        *((name, _int64) for name in ("channels", "inner")),
        *((name, _pointer) for name in ("scale", "scale_direction", "shift_direction")),
    )


class RowTask(ctypes.Structure):
    """Mirror of RowTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "lanes", "out", "scratch", "radii")),
        *((name, _int64) for name in ("directions", "lane_radii", "radii_count", "rows", "length")),
        *((name, _pointer) for name in ("weight", "weight_direction", "bias_direction")),
        ("eps", ctypes.c_double),
        ("target", _pointer),
        ("x_type", _int8),
        ("lane_type", _int8),
        ("second", ctypes.c_bool),
        ("centred", ctypes.c_bool),
    )


class PoolTask(ctypes.Structure):
    """Mirror of PoolTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "lanes", "out", "radii")),
        *((name, _int64) for name in ("directions", "lane_radii", "radii_count", "planes", "height", "width")),
        *((name, _int64 * 2) for name in ("kernel", "stride", "padding", "dilation", "output")),
        ("x_type", _int8),
        ("lane_type", _int8),
        ("second", ctypes.c_bool),
    )


class ReluLineTask(ctypes.Structure):
    """Mirror of ReluLineTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("inputs", "weight", "bias", "head", "head_bias", "points", "out", "tiles", "head_tiles")),
        *((name, _int64) for name in ("rows", "units", "outputs", "classes", "points_count")),
        ("type", _int8),
    )


class LargestTask(ctypes.Structure):
    """Mirror of LargestTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("terms", "strides")),
        *((name, _int64) for name in ("terms_count", "rows", "parts")),
        *((name, _pointer) for name in ("ends", "block_ends", "partial", "largest")),
        ("type", _int8),
    )


class FixedSumTask(ctypes.Structure):
    """Mirror of FixedSumTask in csrc/cpu/api.h."""

    _fields_ = (
        *((name, _pointer) for name in ("terms", "strides")),
        *((name, _int64) for name in ("terms_count", "rows", "parts", "limbs", "first", "length")),
        *((name, _pointer) for name in ("ends", "weights", "units", "out")),
        ("type", _int8),
    )


class FixedValueTask(ctypes.Structure):
    """Mirror of FixedValueTask in csrc/cpu/api.h."""

    _fields_ = (
        ("total", _pointer),
        *((name, _int64) for name in ("rows", "parts", "limbs", "first", "length")),
        *((name, _pointer) for name in ("ends", "units", "out")),
        ("type", _int8),
    )


def address(array: NDArray[np.generic]) -> int:
    """Address of an array's data."""
    return array.ctypes.data


class Layout:
    """Arrays that describe a list of tensors to the kernels, cut in ``groups`` of equal, contiguous pieces each.

    A tensor may be a slice of a whole parameter: ``firsts`` are the elements of the whole that the tensors begin with, default 0.
    ``segments`` points into arrays that this object keeps alive; the tensors must outlive it too.
    """

    def __init__(
        self, ids: Sequence[int], sizes: Sequence[int], groups: Sequence[int], block: int, firsts: Sequence[int] = ()
    ) -> None:
        lengths = np.array([size // max(group, 1) for size, group in zip(sizes, groups, strict=True)], dtype=np.int64)
        self._groups = np.array(groups, dtype=np.int64)
        within = np.arange(self._groups.sum()) - np.repeat(self._groups.cumsum() - self._groups, self._groups)
        counts = np.repeat(lengths, self._groups)
        self.counts = np.ascontiguousarray(counts)
        self._offsets = within * counts  # of the pieces in their tensors
        begins = np.array(list(firsts) or [0] * len(self._groups), dtype=np.int64)
        self.firsts = np.ascontiguousarray(self._offsets + np.repeat(begins, self._groups))
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
        return starts + self._offsets * widths

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
