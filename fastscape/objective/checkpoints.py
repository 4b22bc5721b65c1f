"""Activations checkpointed in the reentrant way: gradients by ``torch.autograd.grad`` fail, or are silently zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from fastscape._warnings import filtered_warnings

_MESSAGE = (
    "model must be differentiable by torch.autograd.grad, got torch.utils.checkpoint with use_reentrant=True, through which "
    "gradients fail, or are zero where no input requires them; pass use_reentrant=False (Hugging Face: "
    "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})), or switch checkpointing off"
)
_SILENT = "None of the inputs have requires_grad=True"  # torch's warning where it drops the gradient of a checkpointed part


@contextmanager
def refused_checkpoints() -> Iterator[None]:
    """Refuse a forward of which torch says that a checkpointed part will have no gradient.

    Raises:
        ValueError: with the remedy.
    """
    try:
        with filtered_warnings(_SILENT, action="error"):
            yield
    except UserWarning as error:
        if _SILENT not in str(error):
            raise
        raise ValueError(_MESSAGE) from None


def check_checkpoints(value: object) -> None:
    """Refuse a loss whose graph goes through a reentrant checkpoint.

    Raises:
        ValueError: with the remedy.
    """
    pending, seen = [value.grad_fn if isinstance(value, Tensor) else None], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise ValueError(_MESSAGE)
        seen.add(node)
        pending += [following for following, _ in node.next_functions]
