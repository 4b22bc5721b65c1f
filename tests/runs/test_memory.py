"""Failures for want of memory, by whatever exception."""

import pytest
import torch

from fastscape.runs.memory import out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 7000000000000 bytes."),
    ],
)
def test_a_lack_of_memory_is_known_by_any_of_its_exceptions(error):
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shape"), ValueError("not enough memory"), KeyboardInterrupt()])
def test_other_errors_are_none(error):
    assert not out_of_memory(error)


def test_torch_says_what_is_looked_for():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
