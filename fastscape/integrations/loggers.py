"""Experiment loggers as functions of (values, step), for ``fs.Tracker(loggers=[...])``.

Points may be measured after later steps of the training; every adapter logs them at the step whose weights they are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREFIX = "landscape/"


class TensorBoard:
    """Scalars of a TensorBoard run.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or the directory of a new one.
        prefix: of the tags.

    Raises:
        ImportError: a directory was given, and tensorboard is not installed.
    """

    def __init__(self, writer: Any, *, prefix: str = PREFIX) -> None:
        if isinstance(writer, (str, Path)):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("TensorBoard needs tensorboard: pip install 'fastscape-probes[loggers]'") from error
            writer = SummaryWriter(str(writer))
        self.writer, self.prefix = writer, prefix

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Write and flush the scalars of a point."""
        for name, value in values.items():
            self.writer.add_scalar(self.prefix + name, value, step)
        self.writer.flush()


class WandB:
    """Metrics of a Weights & Biases run, over an x axis of their own: W&B drops values at steps before its last.

    Args:
        run: what ``wandb.init()`` returned.
        prefix: of the metrics.
    """

    def __init__(self, run: Any, *, prefix: str = PREFIX) -> None:
        self.run, self.prefix = run, prefix
        run.define_metric(f"{prefix}step")
        run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Log the metrics of a point."""
        self.run.log({f"{self.prefix}step": step} | {self.prefix + name: value for name, value in values.items()})


class MLflow:
    """Metrics of an MLflow run.

    Args:
        run: an MLflow run, or its id.
        client: an ``mlflow.tracking.MlflowClient``; ``None`` for one of the current tracking address.
        prefix: of the metrics.

    Raises:
        ImportError: no client was given, and mlflow is not installed.
    """

    def __init__(self, run: Any, *, client: Any = None, prefix: str = PREFIX) -> None:
        if client is None:
            try:
                from mlflow.tracking import MlflowClient
            except ImportError as error:
                raise ImportError("MLflow needs mlflow: pip install 'fastscape-probes[loggers]'") from error
            client = MlflowClient()
        self.client, self.prefix = client, prefix
        self.run_id = run if isinstance(run, str) else run.info.run_id

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Log the metrics of a point."""
        for name, value in values.items():
            self.client.log_metric(self.run_id, self.prefix + name, value, step=step)
