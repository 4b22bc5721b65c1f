"""A tracker as a callback of the Hugging Face ``Trainer``."""

from __future__ import annotations

from typing import Any

from fastscape.probes.tracking.tracker import Tracker

try:
    from transformers import TrainerCallback as _Base
except ImportError as error:
    raise ImportError("fastscape.integrations.huggingface needs transformers: pip install 'fastscape-probes[hf]'") from error


class TrackerCallback(_Base):  # type: ignore[misc]
    """Calls a tracker after every optimizer step, before its gradients are cleared, and finishes it at the end.

    Args:
        tracker: of an objective on the model that is trained.

    Example::

        objective = fs.Objective(model, batches, loss=lambda model, batch: model(**batch).loss)
        tracker = fs.Tracker(objective, when=fs.log_spaced(1000, 12))
        transformers.Trainer(model=model, callbacks=[TrackerCallback(tracker)], ...).train()
        print(tracker.result)
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **kwargs: Any) -> None:
        """The first point."""
        self.tracker.step(state.global_step, optimizer=_inner(kwargs.get("optimizer")))

    def on_optimizer_step(self, _args: Any, state: Any, _control: Any, **kwargs: Any) -> None:
        """After a step; the trainer counts it when the gradients are cleared."""
        self.tracker.step(state.global_step + 1, optimizer=_inner(kwargs.get("optimizer")))

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Pending measurements that can be afforded."""
        self.tracker.finish()


def _inner(optimizer: Any) -> Any:
    """The optimizer that accelerate has wrapped."""
    return getattr(optimizer, "optimizer", optimizer)
