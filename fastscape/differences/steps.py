"""A recorded loss: operations from parameters, buffers and a batch."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastscape.differences.rules.table import PIECEWISE, RULES


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name: of its result.
        target: an overload, or ``operator.getitem``.
        arguments, keywords: with :class:`torch.fx.Node` for results of earlier steps.
        module: of the model, in which it is called.
        moves: whether it depends on the probed parameters.
        last: names of the values that no later step uses.
    """

    name: str
    target: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    module: str
    moves: bool
    last: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """Steps from parameters, buffers and a batch to the loss.

    Attributes:
        steps: in order; unused ones are left out.
        inputs: ``parameter:NAME`` for parameters and buffers, then ``batch:NUMBER`` for the batch's tensors.
        nodes: the names that the steps use for the inputs.
        constants: tensors that the forward holds or makes at trace time, by name.
        loss: name of the result.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    nodes: tuple[str, ...]
    constants: Mapping[str, Tensor]
    loss: str

    @property
    def smooth(self) -> bool:
        """Whether everything that moves is analytic in the parameters: no kinks, choices or operations without a rule."""
        moving = [step.target for step in self.steps if step.moves and step.target is not operator.getitem]
        return all(target in RULES and target not in PIECEWISE for target in moving)
