"""Keep the process as the user left it: random generators, torch flags, attention back ends."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

# The leaves of torch's precision tree. CUDA kernels check that the legacy switches (set_float32_matmul_precision,
# cudnn.allow_tf32) agree with the leaves, so both are written, and the leaves restored last: they return every legacy
# getter to its old value. A user who set only the leaves gets errors from the legacy getters; theirs are left alone.
_backends: Any = torch.backends  # its leaves are not typed
_PRECISION_LEAVES = (
    _backends.cuda.matmul,
    _backends.cudnn.conv,
    _backends.cudnn.rnn,
    _backends.mkldnn.matmul,
    _backends.mkldnn.conv,
    _backends.mkldnn.rnn,
)
_AUTOCAST = ("cpu", "cuda")  # kinds of devices whose autocast evaluations take off


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore torch's (CPU and every CUDA device), NumPy's and Python's global generators on exit."""
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    legacy, python = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(legacy)
        random.setstate(python)


def torch_generators() -> tuple[bytes, ...]:
    """States of torch's global generators, of the CPU and every CUDA device in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return tuple(state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda))


def _legacy(getter: Callable[[], Any]) -> Any:
    """Value of a legacy precision switch; None where torch refuses to tell because only the new ones were set."""
    try:
        return getter()
    except RuntimeError:
        return None


class _Outside(threading.local):
    """The autocast around the outermost evaluation of a thread, by kind of device; ``None`` while there is none."""

    dtypes: dict[str, torch.dtype] | None = None


_outside = _Outside()


def autocast_here() -> dict[str, torch.dtype]:
    """Dtypes of the autocasts that are on, by kind of device."""
    return {device: torch.get_autocast_dtype(device) for device in _AUTOCAST if torch.is_autocast_enabled(device)}


def autocast_outside() -> dict[str, torch.dtype]:
    """Dtypes of the autocasts that the caller of a probe has put around it, which evaluations take off."""
    return autocast_here() if _outside.dtypes is None else _outside.dtypes


def _enter_outside() -> dict[str, torch.dtype] | None:
    before = _outside.dtypes
    _outside.dtypes = autocast_outside()
    return before


def _leave_outside(before: dict[str, torch.dtype] | None) -> None:
    _outside.dtypes = before


@contextmanager
def _uncached_parametrizations() -> Iterator[None]:
    """Inside a caller's ``parametrize.cached()``, weights are made at every use: they move from one evaluation to the next."""
    module: Any = parametrize
    cached = module._cache_enabled
    module._cache_enabled = 0
    try:
        yield
    finally:
        module._cache_enabled = cached


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """So many threads for an operation of torch inside the block; ``None`` for as many as there are."""
    before = torch.get_num_threads()
    if count in (None, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def exact_arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Evaluate in plain IEEE ``dtype``, and restore every flag and the random generators afterwards; see below."""
    with preserved_rng(), plain_arithmetic(dtype):
        yield


@contextmanager
def plain_arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Evaluate in plain IEEE ``dtype`` and restore every flag afterwards; for code that draws no random numbers.

    No gradients, no autocast around the model, no TF32 or reduced-precision accumulation, no cuDNN benchmarking, the
    MATH attention back end and no fused transformer fast path, so that L(w), L(w + e d) and L(w - e d) go through
    one and the same arithmetic. The default dtype is ``dtype``, for models that create tensors in their forward.

    An autocast that the model or the loss enters itself is theirs and stays, without torch's cache of cast weights,
    which outlives an evaluation wherever another autocast is around it; so does ``parametrize.cached``.
    """
    cuda, cudnn = _backends.cuda.matmul, _backends.cudnn
    precision = [leaf.fp32_precision for leaf in _PRECISION_LEAVES]
    matmul, convolution = _legacy(torch.get_float32_matmul_precision), _legacy(lambda: cudnn.allow_tf32)
    reduced = (cuda.allow_fp16_reduced_precision_reduction, cuda.allow_bf16_reduced_precision_reduction)
    benchmark, fastpath, default = cudnn.benchmark, torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_uncached_parametrizations())
        stack.callback(_leave_outside, _enter_outside())
        stack.enter_context(torch.autocast("cpu", enabled=False, cache_enabled=False))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False, cache_enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            if matmul is not None:
                torch.set_float32_matmul_precision("highest")
            if convolution is not None:
                cudnn.allow_tf32 = False
            for leaf in _PRECISION_LEAVES:
                leaf.fp32_precision = "ieee"
            cuda.allow_fp16_reduced_precision_reduction = False
            cuda.allow_bf16_reduced_precision_reduction = False
            cudnn.benchmark = False
            torch.backends.mha.set_fastpath_enabled(False)
            torch.set_default_dtype(dtype)
            yield
        finally:
            torch.set_default_dtype(default)
            torch.backends.mha.set_fastpath_enabled(fastpath)
            cudnn.benchmark = benchmark
            cuda.allow_fp16_reduced_precision_reduction, cuda.allow_bf16_reduced_precision_reduction = reduced
            if matmul is not None:
                torch.set_float32_matmul_precision(matmul)
            if convolution is not None:
                cudnn.allow_tf32 = convolution
            for leaf, value in zip(_PRECISION_LEAVES, precision, strict=True):
                leaf.fp32_precision = value
