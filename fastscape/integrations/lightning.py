"""A tracker as a callback of Lightning."""

from __future__ import annotations

from typing import Any

from fastscape.probes.tracking.tracker import Tracker

try:
    from lightning.pytorch.callbacks import Callback
except ImportError as error:
    raise ImportError("fastscape.integrations.lightning needs Lightning: pip install 'fastscape-probes[lightning]'") from error


class TrackerCallback(Callback):  # type: ignore[misc]
    """Calls a tracker after every optimizer step of ``Trainer.fit``, and finishes it at the end, also after an exception.

    Args:
        tracker: of an objective on the network that is trained: the LightningModule or a module inside it.
        optimizer: which of several optimizers is judged.

    Example::

        objective = fs.Objective(module.net, batches, criterion=torch.nn.functional.cross_entropy)
        tracker = fs.Tracker(objective, when=fs.log_spaced(1000, 12))
        lightning.Trainer(callbacks=[TrackerCallback(tracker)]).fit(module, loader)
        print(tracker.result)
    """

    def __init__(self, tracker: Tracker, *, optimizer: int = 0) -> None:
        self.tracker, self._index, self._last = tracker, optimizer, -1
        self._rate: float | None = None

    def on_train_start(self, trainer: Any, _module: Any) -> None:
        """The first point."""
        self._step(trainer)

    def on_before_optimizer_step(self, trainer: Any, _module: Any, optimizer: Any) -> None:
        """The learning rate of the step; Lightning moves its schedules on before the batch ends."""
        if optimizer is trainer.optimizers[self._index]:
            self._rate = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """After a batch; with accumulated gradients not all of them step."""
        if trainer.global_step != self._last:
            self._step(trainer)

    def on_train_end(self, _trainer: Any, _module: Any) -> None:
        """Pending measurements that can be afforded."""
        self.tracker.finish()

    def on_exception(self, _trainer: Any, _module: Any, _error: BaseException) -> None:
        """Close the record without more measurements."""
        self.tracker.finish(measure=False)

    def _step(self, trainer: Any) -> None:
        self._last = trainer.global_step
        held = trainer.optimizers
        self.tracker.step(self._last, lr=self._rate, optimizer=held[self._index] if held else None)
