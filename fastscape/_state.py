"""Keep the process as the user left it: random generators, torch flags, attention back ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def _legacy(getter: Callable[[], Any]) -> Any:
    """Value of a legacy precision switch; None where torch refuses to tell because only the new ones were set."""
    try:
        return getter()
    except RuntimeError:
        return None


@contextmanager
def exact_arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Evaluate in plain IEEE ``dtype``, and restore every flag and the random generators afterwards; see below."""
    with preserved_rng(), plain_arithmetic(dtype):
        yield


@contextmanager
def plain_arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Evaluate in plain IEEE ``dtype`` and restore every flag afterwards; for code that draws no random numbers.

    No gradients, no autocast, no TF32 or reduced-precision accumulation, no cuDNN benchmarking, the MATH
    attention back end and no fused transformer fast path, so that L(w), L(w + e d) and L(w - e d) go through
    one and the same arithmetic. The default dtype is ``dtype``, for models that create tensors in their forward.
    """
    cuda, cudnn = _backends.cuda.matmul, _backends.cudnn
    precision = [leaf.fp32_precision for leaf in _PRECISION_LEAVES]
    matmul, convolution = _legacy(torch.get_float32_matmul_precision), _legacy(lambda: cudnn.allow_tf32)
    reduced = (cuda.allow_fp16_reduced_precision_reduction, cuda.allow_bf16_reduced_precision_reduction)
    benchmark, fastpath, default = cudnn.benchmark, torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
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
