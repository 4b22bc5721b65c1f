"""Refuse an arithmetic in which a loss is another function: L(w) in two dtypes differs by their rounding, and by no more."""

from __future__ import annotations

import math

import torch

from fastscape._state import exact_arithmetic
from fastscape.evaluation.arithmetic import arithmetic, traced_loss
from fastscape.evaluation.rounding import rounding_model
from fastscape.evaluation.steps import SINGLE, around, unit_error
from fastscape.objective.examination import replica_of, still_replica
from fastscape.objective.replica import Replica

_ULP = 64  # units of the loss by which it may differ without another look
_ROUNDINGS, _LARGEST = 100.0, 0.01  # times the rounding model, as far as that stays within this share of what it is of
_JITTER = 10.0  # times the rounding measured at the weights
_DRAWS = 4


class DtypeDependentLossError(ValueError):
    """The loss of the same weights on the same data is another number in another dtype, by more than rounding."""


def check_same_function(replica: Replica) -> bool:
    """Hold L(w) of the first batch in a replica's dtype against that in the objective's own; once for an objective and dtype.

    Returns:
        Whether both were evaluated.

    Raises:
        DtypeDependentLossError: they differ by more than 100 times the rounding model of the narrower arithmetic (less in half
            precision), and by more than 10 times the rounding measured around w. The loss draws random numbers in its own
            dtype, branches on it, or has constants that depend on it.
    """
    objective, dtype = replica.objective, replica.objective.dtype
    key = "same function", replica.dtype
    if replica.dtype == dtype or key in objective.known:
        return False
    replica.reset()
    replica.evaluations += 1  # of the other copy
    found = traced_loss(replica)
    with exact_arithmetic(dtype):
        own = still_replica(objective, dtype)
        own.reset()
        try:
            expected = traced_loss(own)
        except Exception:  # an operation that the own dtype lacks on this device: nothing to compare with
            return True
        explained = _explained(replica, own, found, expected)
    if math.isfinite(found) and math.isfinite(expected) and not abs(found - expected) <= explained:
        raise DtypeDependentLossError(_words(replica.dtype, dtype, found, expected, explained))
    objective.known[key] = True
    return True


def _explained(replica: Replica, own: Replica, found: float, expected: float) -> float:
    """The difference of two losses that rounding explains."""
    arithmetics = [arithmetic(own.objective, each.dtype) for each in (replica, own)]
    units = [torch.finfo(each.narrow or each.dtype).eps / 2 for each in arithmetics]
    unit, plain = max(units), torch.finfo(own.dtype).eps / 2
    least = _ULP * unit * max(abs(found), abs(expected))
    if abs(found - expected) <= min(least, _LARGEST * abs(expected)):
        return least
    first = own.objective.on(0)
    modelled = rounding_model(replica_of(first, own.dtype)) * max(1.0, unit / plain)
    known = min(_ROUNDINGS, _LARGEST / unit) * modelled
    if abs(found - expected) <= known:
        return known
    other = replica_of(first, own.dtype)
    return max(known, _JITTER * SINGLE * unit_error(around(other, other.reset, _DRAWS), 2 * unit))


def _words(dtype: torch.dtype, own: torch.dtype, found: float, expected: float, explained: float) -> str:
    wide, narrow = (str(each).removeprefix("torch.") for each in (dtype, own))
    remedy = (
        f"precision={narrow!r} measures the loss as it is in {narrow}" if own == torch.float32 else f"cast the model to {wide}"
    )
    return (
        f"the loss must be the same function in {wide} as in the model's {narrow}, got {found:.6g} and {expected:.6g} at "
        f"the same weights, where rounding explains {explained:.1e}: it draws random numbers in its dtype (also seeded ones), "
        "branches on it, or has constants that depend on it; pass the noise as data, in the batch, or draw it in a fixed dtype: "
        f"torch.randn(..., dtype=torch.float32).to(x.dtype); {remedy}"
    )
