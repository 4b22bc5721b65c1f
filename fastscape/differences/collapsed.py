r"""The 2-jet of which only the mean second derivative is wanted.

At radius zero b is linear in its sources, so that its mean over K directions can be carried as one lane beside the K of a:
:math:`\bar b_y = W \bar b + \tfrac{2}{K} \sum_k D_k a_k` through a layer, :math:`f' \bar b + f'' \overline{a^2}` through a
function: (3 K + 2) / (4 K + 1) of the operations and half of the memory. Source: Dangel et al., "Collapsing Taylor mode automatic
differentiation" (2025).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.triple import Decision, FactoredLanes, Triple


def seeded(direction: Tensor) -> Tensor:
    """Lanes ``[K + 1, 1, 1, *shape]`` of a parameter that moves along ``[K, *shape]``: its mean b is zero."""
    return torch.cat((direction, torch.zeros_like(direction[:1])))[:, None, None]


def expanded(value: Any) -> Any:
    """Lanes a and b of every direction, b the mean, in place of collapsed ones, through nested arguments."""
    if isinstance(value, (tuple, list)):
        return type(value)(expanded(part) for part in value)
    if not isinstance(value, Triple) or not value.moves:
        return value
    if value.factors is not None:
        return Triple(value.base, FactoredLanes(value.factors))
    assert value.lanes is not None
    a, mean = value.lanes[:-1], value.lanes[-1:]
    if value.straight:
        return Triple(value.base, a)
    return Triple(value.base, torch.cat((a, mean.expand_as(a)), 1))


def gathered(lanes: Any) -> Any:
    """Collapsed lanes of a result."""
    if isinstance(lanes, (tuple, list)):
        return type(lanes)(gathered(part) for part in lanes)
    if not isinstance(lanes, Tensor):
        return lanes
    a = lanes[:, :1]
    mean = lanes[:, 1:].mean(0, keepdim=True) if lanes.shape[1] == 2 else torch.zeros_like(a[:1])
    return torch.cat((a, mean))


def apply(rule: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """A rule on the lanes of every direction, and its result collapsed again."""
    out = rule(*expanded(arguments), **{name: expanded(value) for name, value in keywords.items()})
    return out if out is NotImplemented or isinstance(out, Decision) else gathered(out)
