"""The doctor's checks of one model, its loss and data, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from fastscape._checks import first_line
from fastscape._state import exact_arithmetic
from fastscape.evaluation.determinism import NondeterministicLossError, unperturbed_loss
from fastscape.objective.objective import Objective
from fastscape.probes.doctor.computing import COMPUTING
from fastscape.probes.doctor.contents import CONTENTS
from fastscape.probes.doctor.result import Finding


class ModelCheckup:
    """Looks at an objective; what needs the loss is left out where that cannot be evaluated.

    Args:
        objective: the function.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.loss = math.nan
        self.accuracy: float | None = None
        self._usable = False

    @property
    def remarks(self) -> tuple[str, ...]:
        """Those of the objective, as far as it can be evaluated."""
        return self.objective.remarks if self._usable else tuple(filter(None, [self.objective.weighting.remark]))

    def findings(self) -> Iterator[Finding]:
        """One finding per check; whatever the model raises is one."""
        for name, check in CONTENTS.items():
            yield _guarded(name, partial(check, self.objective))
        yield _guarded("loss", self._loss)
        if self._usable:
            for name, check in COMPUTING.items():
                yield _guarded(name, partial(check, self.objective))

    def _loss(self) -> Finding:
        try:
            with exact_arithmetic(self.objective.dtype):
                self.loss = unperturbed_loss(self.objective.replica(self.objective.dtype))
        except NondeterministicLossError as error:
            what, _, remedy = str(error).rpartition("; ")
            return Finding("loss", "error", what or str(error), remedy if what else "make it a function of weights and data")
        self._usable = True
        self.accuracy = self.objective.evaluate_once()[1]
        words = f"{self.loss:.6g}, the same twice" + ("" if self.accuracy is None else f"; accuracy {self.accuracy:.1%}")
        if not math.isfinite(self.loss):
            return Finding(
                "loss", "error", f"{self.loss} at w", "there is no landscape around such a point: see the findings above"
            )
        return Finding("loss", "ok", words)


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a model may raise anything; the other checks go on
        words = f"{type(error).__name__}: {first_line(error)[:300]}"
        return Finding(
            name, "error", words, "run model and loss on one batch outside fastscape, in eval(), and see the traceback"
        )
