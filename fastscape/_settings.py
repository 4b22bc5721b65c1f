"""Settings that a process has once, for all of its threads: switched while any of them evaluates, and then switched back."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends, _sdpa_kernel
from torch.nn.utils import parametrize

from fastscape._interrupts import Restoring, held_signals, undo

# The leaves of torch's precision tree. CUDA kernels check that the legacy switches (set_float32_matmul_precision,
# cudnn.allow_tf32) agree with the leaves, so both are written, and the leaves restored last: they return every legacy
# getter to its old value. A user who set only the leaves gets errors from the legacy getters; theirs are left alone.
_backends: Any = torch.backends  # its leaves are not typed
PRECISION_LEAVES = (
    _backends.cuda.matmul,
    _backends.cudnn.conv,
    _backends.cudnn.rnn,
    _backends.mkldnn.matmul,
    _backends.mkldnn.conv,
    _backends.mkldnn.rnn,
)
_ROUNDED = (_backends.mkldnn.matmul, _backends.mkldnn.conv)
_parametrize: Any = parametrize
Later = Callable[[Callable[[], object]], None]


def legacy(getter: Callable[[], Any]) -> Any:
    """Value of a legacy precision switch; None where torch refuses to tell because only the new ones were set."""
    try:
        return getter()
    except RuntimeError:
        return None


class _Settings:
    """Who needs the settings of plain arithmetic, and who those of rounded products, which take turns with it.

    The first block of plain arithmetic saves and switches, and the last one out switches back, of whatever threads. A thread
    that rounds has the process for itself: it waits for the blocks of other threads to end, its own set aside meanwhile, and
    new threads wait for it.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._plain: Counter[int] = Counter()  # blocks by thread
        self._back: list[Callable[[], object]] = []
        self._rounding: int | None = None
        self._waiting = 0

    def plain_here(self) -> bool:
        """Whether this thread is inside a block of plain arithmetic."""
        return self._plain[threading.get_ident()] > 0

    def plain_is_free(self) -> bool:
        """Whether this thread may enter plain arithmetic now."""
        return self.plain_here() or self._rounding == threading.get_ident() or (self._rounding is None and not self._waiting)

    def enter_plain(self) -> None:
        """One block more, of this thread."""
        self._join(1)

    def leave_plain(self) -> None:
        """One block less, of this thread."""
        self._part(1)

    def wait_to_round(self) -> None:
        """Wait until no other thread evaluates; the blocks of this one do not stop others from taking their turns."""
        with self.changed:
            if self._alone():
                return
            aside = 0
            try:
                with held_signals:
                    self._waiting += 1
                    aside = self._part(self._plain[threading.get_ident()])
                self.changed.wait_for(lambda: not self._plain and self._rounding is None)
            finally:
                with held_signals:
                    self._waiting -= 1
                    self._join(aside)

    def round_now(self, later: Later) -> bool:
        """Products in bfloat16 from now on, unless another thread evaluates."""
        with self.changed:
            if not self._alone():
                return False
            outer, self._rounding, inside = self._rounding, threading.get_ident(), bool(self._plain)
            later(lambda: self._stop_rounding(outer))
            for leaf in _ROUNDED:
                later(lambda leaf=leaf, value=leaf.fp32_precision: self._unrounded(leaf, value, inside))  # type: ignore[misc]
                leaf.fp32_precision = "bf16"
            return True

    def forked(self) -> None:
        """In a child process, which has the one thread that forked it."""
        self.changed, me = threading.Condition(threading.RLock()), threading.get_ident()
        self._waiting, self._rounding = 0, self._rounding if self._rounding == me else None
        for other in [thread for thread in self._plain if thread != me]:
            self._part(self._plain[other], other)

    def _alone(self) -> bool:
        me = threading.get_ident()
        return self._rounding in (None, me) and not any(thread != me for thread in self._plain)

    def _unrounded(self, leaf: Any, value: str, inside: bool) -> None:
        if bool(self._plain) == inside:  # else the block around has ended before, and switched back
            leaf.fp32_precision = value

    def _stop_rounding(self, outer: int | None) -> None:
        with self.changed:
            self._rounding = outer
            self.changed.notify_all()

    def _join(self, blocks: int) -> None:
        with self.changed:
            if blocks and not self._plain:
                try:
                    self._switch()
                except BaseException:
                    undo(self._back)
                    raise
            if blocks:
                self._plain[threading.get_ident()] += blocks

    def _part(self, blocks: int, thread: int | None = None) -> int:
        with self.changed:
            thread = threading.get_ident() if thread is None else thread
            self._plain[thread] -= blocks
            if not self._plain[thread]:
                del self._plain[thread]
            if not self._plain:
                undo(self._back)
            self.changed.notify_all()
            return blocks

    def _switch(self) -> None:
        cuda, cudnn, mha = _backends.cuda.matmul, _backends.cudnn, torch.backends.mha
        matmul, convolution = legacy(torch.get_float32_matmul_precision), legacy(lambda: cudnn.allow_tf32)
        attention = _cur_sdpa_kernel_backends(with_priority=False)
        values: list[tuple[Any, str, Any, Any]] = [
            (leaf, "fp32_precision", leaf.fp32_precision, "ieee") for leaf in PRECISION_LEAVES
        ]
        if convolution is not None:
            values.append((cudnn, "allow_tf32", convolution, False))
        reduced = ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
        values += [(cuda, name, getattr(cuda, name), False) for name in reduced]
        values.append((cudnn, "benchmark", cudnn.benchmark, False))
        fastpath, cached = mha.get_fastpath_enabled(), _parametrize._cache_enabled
        self._back += [lambda owner=o, name=n, value=v: setattr(owner, name, value) for o, n, v, _ in values]  # type: ignore[misc]
        if matmul is not None:
            self._back.insert(len(PRECISION_LEAVES), lambda: torch.set_float32_matmul_precision(matmul))
        self._back += [
            lambda: mha.set_fastpath_enabled(fastpath),
            lambda: _sdpa_kernel(attention, False),
            _give_back_cache,
        ]
        _parametrize._cache_enabled = _CacheCount(cached)
        _sdpa_kernel([SDPBackend.MATH], False)
        mha.set_fastpath_enabled(False)
        if matmul is not None:
            torch.set_float32_matmul_precision("highest")
        for owner, name, _, plain in reversed(values):
            setattr(owner, name, plain)


class _CacheCount(int):
    """The count of callers inside ``parametrize.cached()``, which is zero for threads that evaluate.

    Weights are made at every use there: they move from one evaluation to the next.
    """

    def __bool__(self) -> bool:
        return int(self) != 0 and not SETTINGS.plain_here()

    def __add__(self, other: int) -> _CacheCount:
        return _CacheCount(int(self) + other)

    def __sub__(self, other: int) -> _CacheCount:
        return _CacheCount(int(self) - other)


def _give_back_cache() -> None:
    _parametrize._cache_enabled = int(_parametrize._cache_enabled)
    if not _parametrize._cache_enabled:
        _parametrize._cache = {}


SETTINGS = _Settings()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: SETTINGS.forked())


class RoundedProducts(Restoring):
    """Matrix products of float32 operands in bfloat16 with float32 sums, where the device has them, inside the block."""

    def _wait(self) -> None:
        SETTINGS.wait_to_round()

    def _begin(self, later: Later) -> bool:
        return SETTINGS.round_now(later)
