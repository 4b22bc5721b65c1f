r"""The triple (x, a, b) that stands for a tensor at w and at w +- e d, and the state of one propagation.

.. math:: x_\pm = x \pm e\,a + \tfrac{e^2}{2} b, \qquad a = \frac{x_+ - x_-}{2e}, \qquad b = \frac{x_+ - 2x + x_-}{e^2}

At e = 0, a and b are the first and second derivatives along d. ``x`` has the plain shape; a and b of all directions and radii
are one tensor, the *lanes* ``[K, c, S', *shape]``: K directions, a alone (c = 1, b is zero) or a and b (c = 2), and S' = S radii
or S' = 1 where the lanes are the same for every radius.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastscape.directions.low_rank import Factors

Products = Literal["float32", "bfloat16"]
Moved = Mapping[str, Tensor | Factors]  # directions of a block by input name
LEAD = 3  # axes of the lanes in front of the tensor's own: directions, parts, radii


class Base:
    """A value at w, in its own dtype, and its copy in the dtype of the lanes, made once unless it is there already."""

    __slots__ = ("_narrow", "_norm", "x")

    def __init__(self, x: Tensor, narrow: Tensor | None = None) -> None:
        self.x, self._narrow = x, narrow
        self._norm: float | None = None

    @property
    def norm(self) -> float:
        """||x||, computed once."""
        if self._norm is None:
            self._norm = float(self.x.norm())
        return self._norm

    def narrow(self, dtype: torch.dtype) -> Tensor:
        """X in the dtype of the lanes."""
        if self.x.dtype == dtype:
            return self.x
        if self._narrow is None or self._narrow.dtype != dtype:
            self._narrow = self.x.to(dtype)
        return self._narrow


def seeded(direction: Tensor) -> Tensor:
    """Lanes ``[K, 1, 1, *shape]`` of a parameter that moves along ``[K, *shape]``."""
    return direction[:, None, None]


@dataclass(frozen=True)
class FactoredLanes:
    """Lanes of a matrix that moves along directions of low rank.

    Attributes:
        factors: of the directions.
        seed: makes lanes of directions ``[K, *shape]``.
    """

    factors: Factors
    seed: Callable[[Tensor], Tensor] = seeded

    def dense(self) -> Tensor:
        """The lanes as a tensor."""
        return self.seed(self.factors.dense())

    @property
    def transposed(self) -> FactoredLanes:
        """Those of the transposed matrix."""
        return replace(self, factors=self.factors.transposed)


class Triple:
    """A tensor at w and its lanes.

    Attributes:
        base: the value at w.
        held: the lanes, perhaps of a matrix as factors.
        straight: whether it is a parameter itself, whose b is zero.
        origin: of the logarithm of a softmax, (logits, axis): a loss of it is taken from the logits, where nothing cancels.
    """

    __slots__ = ("base", "held", "origin", "straight")

    def __init__(self, base: Base | Tensor, lanes: Tensor | FactoredLanes | None = None, *, straight: bool = False) -> None:
        self.base = base if isinstance(base, Base) else Base(base)
        self.held, self.straight = lanes, straight
        self.origin: tuple[Triple, int] | None = None

    @classmethod
    def along(cls, base: Base | Tensor, direction: Tensor | Factors, seed: Callable[[Tensor], Tensor]) -> Triple:
        """A parameter that moves along ``[K, *shape]``."""
        return cls(base, FactoredLanes(direction, seed) if isinstance(direction, Factors) else seed(direction), straight=True)

    @property
    def lanes(self) -> Tensor | None:
        """The lanes, multiplied out; ``None`` where it does not depend on the probed parameters."""
        return self.held.dense() if isinstance(self.held, FactoredLanes) else self.held

    @property
    def moves(self) -> bool:
        """Whether it depends on the probed parameters."""
        return self.held is not None

    @property
    def factors(self) -> Factors | None:
        """Of the directions, where it moves by those of low rank."""
        return self.held.factors if isinstance(self.held, FactoredLanes) else None

    @property
    def x(self) -> Tensor:
        """The value at w."""
        return self.base.x

    @property
    def shape(self) -> torch.Size:
        """Of the value."""
        return self.base.x.shape

    @property
    def ndim(self) -> int:
        """Of the value."""
        return self.base.x.ndim

    @property
    def parts(self) -> tuple[Tensor, Tensor | None]:
        """A and b, ``[K, S', *shape]`` each; b is ``None`` where it is zero."""
        lanes = self.lanes
        assert lanes is not None
        return lanes[:, 0], lanes[:, 1] if lanes.shape[1] == 2 else None


class Decision:
    """A value without derivative (bool or integer) that differs between w and w +- e d.

    Attributes:
        x: at w.
        plus, minus: at w + e d and w - e d, ``[K, S, *shape]``.
    """

    __slots__ = ("minus", "plus", "x")

    def __init__(self, x: Tensor, plus: Tensor, minus: Tensor) -> None:
        self.x, self.plus, self.minus = x, plus, minus


@dataclass
class Frame:
    """One propagation.

    Attributes:
        radii: e, float64 ``[S]``, zeros allowed.
        dtype: of the lanes.
        products: what the operands of matrix products are rounded to.
        collapsed: the lanes are a of every direction and the mean of b over them, ``[K + 1, 1, 1, *shape]`` (radius zero).
        operations: multiplications and additions of matrix products on the lanes, counted.
        fallbacks: operations without a rule, which took local float64 evaluations: name -> calls.
        frozen: decisions of the host (branches, ``.item()``) that were taken at w: name -> how many differ at w +- e d.
        seen: operations that were carried through: target -> calls.
    """

    radii: Tensor
    dtype: torch.dtype
    products: Products = "float32"
    collapsed: bool = False
    operations: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)
    frozen: dict[str, int] = field(default_factory=dict)
    seen: Counter[Any] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._powers: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._jet = not bool(self.radii.any())

    @property
    def jet(self) -> bool:
        """Whether every radius is zero: a and b are derivatives, and x~ is x."""
        return self._jet

    def power(self, ndim: int, exponent: int, dtype: torch.dtype) -> Tensor:
        """E ** exponent as ``[S, 1, ...]`` with ``ndim`` ones, to multiply lanes ``[K, S, *shape]``."""
        key = (ndim, exponent, dtype)
        found = self._powers.get(key)
        if found is None:
            found = (self.radii**exponent).to(dtype).reshape(-1, *[1] * ndim)
            self._powers[key] = found
        return found

    def divisor(self, ndim: int, exponent: int, dtype: torch.dtype) -> Tensor:
        """:meth:`power` with ones in place of zeros."""
        values = self.power(ndim, exponent, dtype)
        return torch.where(values == 0, torch.ones_like(values), values)

    def middle(self, value: Triple) -> Tensor:
        """x~ = x + (e^2 / 2) b = (x+ + x-) / 2 in the dtype of the lanes: ``[K, S, *shape]``, or ``[*shape]`` where it is x."""
        assert value.lanes is not None
        x, b = value.base.narrow(value.lanes.dtype), value.parts[1]
        if b is None or self.jet:
            return x
        return torch.addcmul(x, self.power(value.ndim, 2, b.dtype), b, value=0.5)

    def displaced(self, value: Triple) -> list[int]:
        """The radii at which x~ differs from x by more than rounding, in the norm of any direction's lane."""
        b = value.parts[1]
        if b is None or self.jet:
            return []
        shift = 0.5 * self.radii**2 * b.flatten(2).float().norm(dim=2).amax(0).double()
        small = 2 * torch.finfo(b.dtype).eps * value.base.norm
        return [place for place, moves in enumerate((shift > small).tolist()) if moves or math.isnan(shift[place])]

    def steps(self, value: Triple, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """P = x+ - x and m = x - x-, ``[K, S, *shape]``, in ``dtype`` (default: that of the lanes)."""
        assert value.lanes is not None
        a, b = value.parts
        wide = dtype or value.lanes.dtype
        first = self.power(value.ndim, 1, wide) * a.to(wide)
        if b is None:
            return first, first
        second = self.power(value.ndim, 2, wide) * b.to(wide) * 0.5
        return first + second, first - second

    def points(self, value: Triple, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """x, x+ and x- in a wide dtype."""
        p, m = self.steps(value, dtype)
        x = value.x.to(dtype)
        return x, x + p, x - m

    def from_points(self, y: Tensor, plus: Tensor, minus: Tensor, dtype: torch.dtype) -> Tensor:
        """Lanes by plain differences of wide values; NaN where the radius is zero and the values differ."""
        one, two = (self.divisor(y.ndim, exponent, plus.dtype) for exponent in (1, 2))
        up, down = plus - y, y - minus
        return torch.stack(((up + down) / (2 * one), (up - down) / two), 1).to(dtype)
