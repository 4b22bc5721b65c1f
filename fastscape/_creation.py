"""The dtype of tensors that a model creates in its forward, for one thread: torch's default is one for the whole process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from fastscape._generators import alone
from fastscape._interrupts import Restoring, held_signals

# Functions that make floating-point numbers of the default dtype whatever they are given, and those that do so for Python's;
# operations that make integers floating-point numbers, by their names without underscores.
_ALWAYS_NAMES = """
    bartlett_window blackman_window empty empty_permuted empty_strided eye hamming_window hann_window kaiser_window linspace
    logspace ones rand randn zeros"""
_BY_VALUE_NAMES = "arange as_tensor asarray full range scalar_tensor sparse_coo_tensor tensor"
_PROMOTING_NAMES = """
    acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan atan2 atanh clamp
    clampmax clampmin clip cos cosh deg2rad digamma div divide entr erf erfc erfcx erfinv exp exp2 expit expm1 floatpower
    floordivide fmod gammaln i0 i0e i1 i1e lgamma log log10 log1p log2 logaddexp logaddexp2 logit logndtr maximum mul multigammaln
    multiply mvlgamma ndtr ndtri polygamma pow psi rad2deg radd rdiv reciprocal remainder rfloordiv rmod rmul rpow rsqrt rsub
    rtruediv sigmoid sin sinc sinh sqrt sub subtract tan tanh truediv truedivide xlog1py xlogy zeta"""
_ALWAYS = frozenset(getattr(torch, name) for name in _ALWAYS_NAMES.split())
_BY_VALUE = frozenset(getattr(torch, name) for name in _BY_VALUE_NAMES.split())
_PROMOTING = frozenset(_PROMOTING_NAMES.split())
_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64, torch.float16: torch.complex32}
_system_default = torch.get_default_dtype
_stack: Any = _get_current_function_mode_stack


class _Here(threading.local):
    """The dtype that a thread creates tensors in; ``None`` for the process's default."""

    dtype: torch.dtype | None = None
    mode: FunctionMode | None = None


_here = _Here()


def default_dtype() -> torch.dtype:
    """``torch.get_default_dtype`` while a thread evaluates in another dtype: that one in the thread itself."""
    return _here.dtype or _system_default()


class FunctionMode(TorchFunctionMode):
    """A mode of torch's functions that Ctrl-C may have taken off: torch does so for the time of each call, in Python."""

    def __exit__(self, *error: object) -> None:
        if any(each is self for each in _stack()):
            super().__exit__(*error)  # type: ignore[no-untyped-call]


class _Created(FunctionMode):
    """Tensors of the thread's dtype where torch would take the process's default one."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords, dtype = keywords or {}, _here.dtype
        if dtype is None or keywords.get("dtype") is not None or dtype == _system_default():
            return function(*arguments, **keywords)
        first = arguments[0] if arguments else None
        if function in _ALWAYS or (function is torch.normal and all(map(_of_python, (*arguments, *keywords.values())))):
            return function(*arguments, **keywords) if "out" in keywords else function(*arguments, **keywords | {"dtype": dtype})
        if isinstance(first, Tensor) and first.is_floating_point():
            return function(*arguments, **keywords)
        return _widened(function, arguments, keywords, dtype)


def _widened(function: Any, arguments: Any, keywords: Any, dtype: torch.dtype) -> Any:
    """What a function makes of Python's numbers, or of integers, in ``dtype`` where it is floating-point."""
    found = function(*arguments, **keywords)
    if not isinstance(found, Tensor):
        return found
    narrow = _system_default()
    wanted = {narrow: dtype, _COMPLEX.get(narrow): _COMPLEX.get(dtype, torch.complex64)}.get(found.dtype)
    if wanted is None:
        return found
    given = (*arguments, *keywords.values())
    if function in _BY_VALUE:
        return function(*arguments, **keywords | {"dtype": wanted}) if all(map(_of_python, given)) else found
    if any(isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()) for value in given):
        return found
    name = getattr(function, "__name__", "").removeprefix("special_").replace("_", "")
    if name == "where":
        rest = [_number(value, wanted) for value in arguments[1:]]
        return function(arguments[0], *rest, **{key: _number(value, wanted) for key, value in keywords.items()})
    if name in _PROMOTING and "out" not in keywords:
        return function(*map(_cast(wanted), arguments), **{key: _cast(wanted)(value) for key, value in keywords.items()})
    return found


def _of_python(value: Any) -> bool:
    """Whether a value holds no tensor and no array or number of NumPy, whose dtypes stay theirs."""
    if isinstance(value, (list, tuple)):
        return all(map(_of_python, value))
    return not isinstance(value, (Tensor, np.ndarray)) and (not isinstance(value, np.generic) or isinstance(value, float))


def _cast(dtype: torch.dtype) -> Any:
    return lambda value: value.to(dtype) if isinstance(value, Tensor) else value


def _number(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (bool, int, float, complex)):
        return torch.scalar_tensor(value, dtype=dtype)
    return _cast(dtype)(value)


_lock, _threads = threading.RLock(), 0  # threads that have another dtype than the process
_owner: int | None = None  # the thread that has set the process's default
_users: torch.dtype | None = None  # the default before


def create_in(dtype: torch.dtype | None) -> torch.dtype | None:
    """Create tensors in ``dtype`` from now on in this thread, and return what was before; call it while signals are held.

    In a process of one thread torch's default is set, which every way of creating tensors obeys. Beside other threads it stays
    theirs, and a mode of this thread gives those that go through torch's functions.
    """
    before, _here.dtype = _here.dtype, dtype
    if _set_for_all(dtype):
        return before
    needed = dtype is not None and (_here.mode is not None or _owner is not None or dtype != _system_default())
    if needed and _here.mode is None:
        _here.mode = _Created()
        _here.mode.__enter__()  # type: ignore[no-untyped-call]
        _tell(1)
    elif not needed and _here.mode is not None:
        mode, _here.mode = _here.mode, None
        mode.__exit__(None, None, None)
        _tell(-1)
    return before


class users_dtype(Restoring):  # noqa: N801 - a block, as contextlib's
    """Create tensors as the user's own code would, in a thread that was born while another one evaluates."""

    def _begin(self, later: Callable[[Callable[[], object]], None]) -> bool:
        if _owner not in (None, threading.get_ident()):
            before = create_in(_users)
            later(lambda: create_in(before))
        return True


def _set_for_all(dtype: torch.dtype | None) -> bool:
    """Set torch's default where this thread was alone when it began to evaluate; whether it was."""
    global _owner, _users
    me = threading.get_ident()
    with held_signals, _lock:
        if _owner is None and dtype not in (None, _system_default()) and not _threads and alone():
            _owner, _users = me, _system_default()
        if _owner != me:
            return False
        assert _users is not None
        torch.set_default_dtype(_users if dtype is None else dtype)
        if dtype is None:
            _owner = None
        return True


def _tell(change: int) -> None:
    """Let ``torch.get_default_dtype`` tell threads theirs as long as there are any."""
    global _threads
    with held_signals, _lock:
        _threads += change
        torch.get_default_dtype = default_dtype if _threads else _system_default
