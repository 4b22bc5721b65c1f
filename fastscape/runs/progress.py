"""State of a probe's work, as it is told to the caller."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastscape.numerics.estimate import Estimate
from fastscape.runs.budget import Budget


@dataclass(frozen=True)
class Progress:
    """State of a probe after a unit of its work: what every probe passes to ``progress=``.

    Attributes:
        name: of the checkpoint.
        stage: what is being done, in words; empty where ``unit`` says it.
        unit: of the work, in the singular: ``"direction"``, ``"product"``, ``"point"``; empty where none is counted.
        done: units so far, over all checkpoints of the multifractal probe, of one of a spectrum.
        total: how many there will be; ``None`` where that is open.
        fraction: of the run, in [0, 1], an estimate.
        elapsed, remaining: seconds; the latter is an estimate, infinite where there is none.
        m_tau: latest estimate at the first checkpoint, of a multifractal probe that has one.
        lambda_max: largest Ritz value so far, of a spectrum that has one; else NaN.
        trace: latest estimate, of a spectrum that has one.
    """

    name: str
    stage: str = ""
    unit: str = ""
    done: int = 0
    total: int | None = None
    fraction: float = 0.0
    elapsed: float = 0.0
    remaining: float = math.inf
    m_tau: Estimate | None = None
    lambda_max: float = math.nan
    trace: Estimate | None = None

    @classmethod
    def under(cls, budget: Budget, name: str, share: float, **known: Any) -> Progress:
        """The state at this time: as much is done as the ``share`` of the work or of the budget, whichever is more."""
        elapsed = budget.elapsed
        fraction = min(1.0, max(share, elapsed / budget.seconds))
        foreseen = elapsed * (1 - fraction) / fraction if fraction > 0 else math.inf
        remaining = min(foreseen, max(budget.remaining, 0.0))
        return cls(name, fraction=fraction, elapsed=elapsed, remaining=remaining, **known)

    @property
    def checkpoint(self) -> str:
        """``name``, as the multifractal probe called it."""
        return self.name

    @property
    def directions(self) -> int:
        """``done``, as the multifractal probe called it."""
        return self.done

    @property
    def products(self) -> int:
        """``done``, as the spectrum called it."""
        return self.done


def reporter(progress: Callable[..., None] | None, former: tuple[str, ...] = ()) -> Callable[..., None] | None:
    """What a probe calls with its state, and with the arguments that ``progress=`` had before there was one type for all.

    Args:
        progress: as it was given; ``None`` for nobody.
        former: names of those arguments; empty where it always was a state.

    Raises:
        TypeError: what is no function of a state.

    Warns:
        DeprecationWarning: a function of the former arguments, which it gets.
    """
    if progress is None:
        return None
    if _takes(progress, 1):
        return lambda state, *_: progress(state)
    if not former or not _takes(progress, len(former)):
        raise TypeError(f"progress must be a function of one fastscape.Progress, got {progress!r}")
    warnings.warn(
        f"progress= is now called with one fastscape.Progress, no longer with ({', '.join(former)}); a function of those will be "
        "refused",
        DeprecationWarning,
        stacklevel=3 + (sys._getframe(2).f_code.co_name == "keeping"),  # the decorator of probes
    )
    return lambda _, *arguments: progress(*arguments)


def _takes(function: object, count: int) -> bool:
    """Whether it can be called with so many arguments; a function of C that does not tell can."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError) as error:
        return isinstance(error, ValueError)
    return True
