"""Failures for want of memory, by whatever exception."""

from __future__ import annotations

import torch

_WORDS = ("not enough memory", "can't allocate memory")  # of torch's allocators on the host, which raise a RuntimeError


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had, of a device or of the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def free_caches() -> None:
    """Give back what torch keeps of a device's memory for later."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
