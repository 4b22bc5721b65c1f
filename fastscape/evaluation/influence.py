"""Parameters that cannot move the loss where it is: no gradient, and no change when they are displaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscape._checks import counted
from fastscape._warnings import filtered_warnings
from fastscape.objective.replica import Replica

_STEP = 1e-2  # of the size of a tensor's numbers, or of 1 where all are zero
STILL = (
    "the loss did not change at any point: what was moved cannot move it at these weights (a factor beside another that is zero, "
    "a saturated loss), moved too little, or loss= does not use the model it is given"
)
_TOLD = 0.1  # share above which single numbers without influence are worth a word; whole tensors always are


@dataclass(frozen=True)
class Influence:
    """Parameters that move the loss.

    Attributes:
        share: of the probed numbers that have an exactly zero gradient, and by whose displacement, all at once, the loss does not
            change by a bit. They may matter once others have moved, as one factor of a product does beside another that is zero.
        names: of the tensors that consist of them.
        flat: the gradient is exactly zero throughout.
    """

    share: float
    names: tuple[str, ...]
    flat: bool

    @property
    def note(self) -> str:
        """In words; empty where there is nothing to tell."""
        if not self.names and self.share < _TOLD:
            return ""
        listed = ", ".join(self.names[:3]) + (" and more" if len(self.names) > 3 else "")
        which = f" ({counted(len(self.names), 'whole tensor')}: {listed})" if self.names else ""
        return f"{self.share:.1%} of the parameters cannot move the loss at these weights{which}"


def influence(replica: Replica) -> Influence:
    """Probed parameters that move the loss; scratch weights are the objective's afterwards.

    Cost: a gradient and two to four forwards; memory of a gradient.
    """
    names = replica.objective.names
    replica.reset()
    with filtered_warnings():  # of a forward that takes values out of torch: only a backward pass is new to it
        still = [part == 0 for part in replica.gradient()]
    flat = all(bool(mask.all()) for mask in still)
    whole = [mask if bool(mask.all()) else torch.zeros_like(mask) for mask in still]
    base = float(replica.loss())
    for masks in (still, whole):
        if any(bool(mask.any()) for mask in masks) and _unmoved(replica, masks, base):
            size = sum(mask.numel() for mask in masks)
            dead = tuple(name for name, mask in zip(names, masks, strict=True) if bool(mask.all()))
            return Influence(sum(int(mask.sum()) for mask in masks) / size, dead, flat)
    return Influence(0.0, (), flat)


def _unmoved(replica: Replica, masks: Sequence[Tensor], base: float) -> bool:
    """Whether the loss stays, to the last bit, where the numbers in the masks move both ways."""
    found = []
    for sign in (1.0, -1.0):
        for slot, weight, mask in zip(replica.scratch, replica.base, masks, strict=True):
            wave = torch.arange(weight.numel(), dtype=torch.float32, device=weight.device).sin_().reshape(weight.shape)
            wide = weight.to(torch.promote_types(replica.dtype, torch.float32))
            size = float(wide.square().mean().sqrt()) or 1.0
            slot.copy_(wide + sign * _STEP * size * wave * mask)
        found.append(float(replica.loss()))
    replica.reset()
    return found == [base, base]
