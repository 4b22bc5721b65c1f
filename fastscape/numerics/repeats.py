"""Repeated eigenvalues: how many Ritz values of one end are known to leave out no further copy."""

from __future__ import annotations

from fastscape.numerics.arrays import Array

_APART = 0.1  # spread of copies relative to the distance to the next value; more is a cluster, not one eigenvalue


def certain(values: Array, residuals: Array, copies: int, rounding: float) -> int:
    r"""How many of the outermost Ritz values are certain to be the outermost eigenvalues, as far as copies matter.

    The Krylov space of p random vectors holds min(p, multiplicity) copies of an eigenvalue. Where p values or more are equal, up
    to the :math:`4 \sum r^2 / g` that residuals r at a distance g to the next value leave, further copies may be missing
    and all values after them stand too far out.

    Args:
        values: outermost first ``[k]``.
        residuals: of them ``[k]``.
        copies: p.
        rounding: distance at which values are equal in any case.

    Returns:
        k, or the number of values up to the end of the first such run.
    """
    for last in range(copies - 1, len(values) - 1):
        run = slice(last - copies + 1, last + 1)
        spread, gap = abs(values[run.start] - values[last]), abs(values[last] - values[last + 1])
        if gap <= rounding + residuals[last] + residuals[last + 1]:  # then the values after it hold within their residuals
            continue
        if spread <= max(rounding, min(_APART * gap, 4 * float((residuals[run] ** 2).sum()) / gap)):
            return last + 1
    return len(values)
