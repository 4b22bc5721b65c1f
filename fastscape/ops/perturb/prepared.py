"""Perturbations into memory that is used again: everything that does not change between calls is set up once."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastscape._checks import integer
from fastscape.ops import _checks, _native, _tasks, _triton
from fastscape.ops.direction import direction
from fastscape.ops.direction.reference import Distribution
from fastscape.ops.perturb.reference import arithmetic, displaced


class Perturbation:
    r"""Writes :math:`w_t + (r\, s_t)\, z_t` into the caller's tensors, with the bits of :func:`fastscape.ops.perturb`.

    For one thread at a time. On a CPU with the native library a call allocates nothing and skips the dispatcher: 5 microseconds
    and the kernel's own time. On a GPU with Triton a call sends the coefficients there and launches the kernel,
    unless ``raw`` is given.

    Args:
        weights: T tensors, read at every call.
        outputs: R lists of T tensors of one dtype to write to, one list per radius. The kernels answer where weights and outputs
            are contiguous; other layouts (channels last) are written by torch.
        ids: the parameters' 32-bit ids.
        groups: number of equal pieces of each tensor that have a scale of their own.
        distribution: ``"gaussian"`` or ``"rademacher"``.
        firsts: elements of the whole parameters that the weights begin with, for shards; default 0 each.
        raw: stored directions to use instead of generating them: T contiguous tensors, float32, or the arithmetic of the outputs.

    Raises:
        ValueError: numbers, sizes or dtypes that do not fit, naming the argument.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        outputs: Sequence[Sequence[Tensor]],
        ids: Sequence[int],
        *,
        groups: Sequence[int] | None = None,
        distribution: Distribution = "gaussian",
        firsts: Sequence[int] | None = None,
        raw: Sequence[Tensor] | None = None,
    ) -> None:
        self.weights, self.outputs, self.raw = list(weights), [list(row) for row in outputs], raw
        self.ids, self.groups = list(ids), [1] * len(self.weights) if groups is None else list(groups)
        self.distribution, self.firsts = distribution, list(firsts or ())
        self._check()
        self.dtype = self.outputs[0][0].dtype
        self._aim: tuple[int, int, NDArray[np.float64]] | None = None
        self._kernel: Any = None  # what the C++ or the Triton kernel prepared: both have ``aim`` and ``write``
        tensors = [*self.weights, *(tensor for row in self.outputs for tensor in row), *(raw or ())]
        on_cpu = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
        if _native.library.available and on_cpu and self.dtype in _tasks.TYPES:
            self._kernel = self._prepare()
        elif raw is None and all(t.dtype in _tasks.TYPES for t in tensors) and _triton.answers(tensors):
            kernels = import_module("fastscape.ops.perturb.triton")
            self._kernel = kernels.Prepared(self.weights, self.outputs, self.ids, self.groups, distribution, self.firsts)

    @property
    def fused(self) -> bool:
        """Whether a kernel answers; torch would generate all noise again at every call, or take ``raw``."""
        return self._kernel is not None

    def _check(self) -> None:
        """Raise a ValueError naming the argument, before an address is taken."""
        sizes = [weight.numel() for weight in self.weights]
        if not self.outputs or not sizes:
            raise ValueError(f"weights and outputs must not be empty, got {len(sizes)} weights and {len(self.outputs)} outputs")
        if len(self.ids) != len(sizes):
            raise ValueError(f"ids must have one id per weight, got {len(self.ids)} for {len(sizes)}")
        for position, weight in enumerate(self.weights):
            if weight.dtype not in _tasks.TYPES:
                raise ValueError(f"weights[{position}] must be {_checks.SUPPORTED}, got {weight.dtype}")
        _checks.one_type("outputs", [tensor for row in self.outputs for tensor in row], list(_tasks.TYPES))
        for position, row in enumerate(self.outputs):
            _checks.same_sizes(f"outputs[{position}]", row, sizes)
        _checks.groups(sizes, self.groups)
        _checks.firsts(sizes, self.firsts)
        _checks.kind(self.distribution)
        if self.raw is not None:
            _checks.one_type("raw", self.raw, (torch.float32, arithmetic(self.outputs[0][0].dtype)))
            _checks.same_sizes("raw", self.raw, sizes)
            _checks.contiguous("raw", self.raw)

    def _prepare(self) -> _native.NativeTask:
        sizes = [weight.numel() for weight in self.weights]
        layout = _tasks.Layout(self.ids, sizes, self.groups, _tasks.BLOCK, self.firsts)
        layout.use_weights(self.weights)
        if self.raw is not None:
            layout.use_raw(self.raw)
        outputs = np.ascontiguousarray([layout.pieces(row) for row in self.outputs])
        wide = self.raw is not None and bool(self.raw) and self.raw[0].dtype == torch.float64
        return _native.native_task(layout, outputs, 1, len(self.outputs), self.dtype, self.distribution, raw_float64=wide)

    def aim(self, seed: int, index: int, scales: NDArray[np.float64]) -> None:
        """Choose the direction that :meth:`write` moves along.

        Args:
            seed: key of the generator (ignored with ``raw``).
            index: of the direction (ignored with ``raw``).
            scales: float64 ``[sum(groups)]``.
        """
        self._aim = (integer("seed", seed, 0, 2**64), integer("index", index, 0, 2**32), scales)
        if self._kernel is not None:
            self._kernel.aim(seed, (index,), scales)

    def write(self, *radii: float) -> None:
        """Write the weights displaced by R signed radii to the R outputs.

        Raises:
            RuntimeError: no direction was chosen.
            ValueError: not R radii.
        """
        if self._aim is None:
            raise RuntimeError("aim() must choose a direction before write()")
        if len(radii) != len(self.outputs):
            raise ValueError(f"radii must be one per output, got {len(radii)} for {len(self.outputs)}")
        if self._kernel is not None:
            self._kernel.write(radii)
            return
        seed, index, scales = self._aim
        noise = self.raw
        if noise is None:
            ids = torch.tensor(self.ids, device=self.weights[0].device)
            sizes = [weight.numel() for weight in self.weights]
            noise = direction(ids, seed, [index], sizes, self.distribution, self.firsts)
        parts = np.split(scales, np.cumsum(self.groups)[:-1])
        for slot, (weight, z, part) in enumerate(zip(self.weights, noise, parts, strict=True)):
            for row, radius in zip(self.outputs, radii, strict=True):
                _write(row[slot], weight, z, part, radius)


def _write(target: Tensor, weight: Tensor, noise: Tensor, scales: NDArray[np.float64], radius: float) -> None:
    """One output by torch: in place where the target's dtype is that of the arithmetic and one number scales it."""
    compute = arithmetic(target.dtype)
    if len(scales) == 1 and target.dtype == compute:
        coefficient = torch.tensor(radius * scales[0], dtype=torch.float64).to(compute)
        target.copy_(noise.view(target.shape)).mul_(coefficient.to(target.device)).add_(weight.to(compute))
        return
    factors = torch.from_numpy(scales).to(target.device).unsqueeze(0)
    target.copy_(displaced(weight, noise.reshape(1, -1), factors, (radius,), target.dtype)[0, 0].view(target.shape))
