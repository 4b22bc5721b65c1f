"""The doctor: anything that could make results wrong or slow, on this machine and for this model."""

from __future__ import annotations

from typing import Any

import torch

from fastscape._clock import now
from fastscape._state import kept_generators
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.doctor.machine import machine_findings
from fastscape.probes.doctor.model import ModelCheckup
from fastscape.probes.doctor.result import Diagnosis
from fastscape.runs.provenance import objective_meta, provenance
from fastscape.runs.run import check_shared


def doctor(objective: Objective | None = None, *, name: str | None = None, step: int | None = None) -> Diagnosis:
    """Report anything that could make results wrong or slow, each finding with its remedy.

    Of the machine: native kernels, CUDA and Triton, threads against processors, optional packages, settings of precision,
    versions, temporary files. Of a model: dtype, frozen and tied parameters, NaN and inf in weights, data, loss and gradient,
    zero weights, running statistics of batch norm, dropout, ragged batches, the determinism gate, operations without difference
    rules, torch's own double backward in the user's settings against checked Hessian products, and how these are computed.

    Args:
        objective: the model, its loss and data; ``None`` to look at the machine alone.
        name, step: of the model.

    Returns:
        A :class:`Diagnosis`; print it, or read its ``findings`` and ``worst``. Whatever a model raises is a finding.

    Raises:
        TypeError: not an Objective.

    Cost: without a model milliseconds; with one about 30 forwards, 60 gradients, and one direction of difference propagation.

    Example:
        >>> import fastscape as fs
        >>> fs.doctor().worst in ("ok", "warning", "error")
        True
    """
    start = now()
    check_shared({"name": name, "step": step})
    with kept_generators():
        machine = tuple(machine_findings())
        found: tuple[Any, ...] = ()
        meta = provenance()
        if objective is not None:
            with torch.inference_mode(False):
                checkup = ModelCheckup(checked_objective(objective))
                found = tuple(checkup.findings())
                meta = objective_meta(objective, checkup.remarks) | {"loss": checkup.loss, "accuracy": checkup.accuracy}
    title = name or ("machine" if objective is None else type(objective.model).__name__)
    return Diagnosis(title, step, machine, found, meta | {"seconds": now() - start})
