"""Triton's interpreter, repaired for bfloat16: as it comes it truncates where the chips round to the nearest, and computes on raw
bits inside products of matrices."""

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # a chip where there is one, else the interpreter


def widened(handle, language):
    """The values of a handle, bfloat16 as float32."""
    if handle.dtype.scalar == language.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def rounded(values):
    """The bits of bfloat16, to the nearest and ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest).reshape(values.shape)


@pytest.fixture(autouse=True)
def bfloat16_as_on_chips(monkeypatch):
    """Correct casts and products in the interpreter; import it into a test module to use it there."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    import triton.language as tl

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast, dot = builder.cast_impl, builder.create_dot

    def cast_impl(self, source, target):
        pair = source.dtype.scalar, target.scalar
        if pair == (tl.float32, tl.bfloat16):
            return handle(rounded(source.data), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            return handle(widened(source, tl), tl.float32)
        return cast(self, source, target)

    def create_dot(self, left, right, total, *options):
        if tl.bfloat16 not in (left.dtype.scalar, right.dtype.scalar):
            return dot(self, left, right, total, *options)
        product = np.matmul(widened(left, tl), widened(right, tl), dtype=np.float32)
        return handle(product + total.data, total.dtype.scalar)

    monkeypatch.setattr(builder, "cast_impl", cast_impl)
    monkeypatch.setattr(builder, "create_dot", create_dot)
