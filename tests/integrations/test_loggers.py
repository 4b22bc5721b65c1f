"""Adapters to experiment loggers, read back from what the real packages wrote."""

import json
import math
from pathlib import Path

import pytest

from fastscape.integrations.loggers import MLflow, TensorBoard, WandB

POINTS = [(0, {"loss": 2.5, "lambda_max": 7.0}), (40, {"loss": 1.25, "lambda_max": 30.0}), (8, {"loss": 2.0})]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def logged(logger):
    for step, values in POINTS:
        logger(values, step)


def test_tensorboard_reads_the_event_file_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tmp_path)
    logged(logger)
    logger({"loss": math.nan}, 50)
    logger.writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = events.Scalars("landscape/loss")
    assert [(event.step, event.value) for event in found[:3]] == [(0, 2.5), (40, 1.25), (8, 2.0)]
    assert math.isnan(found[3].value)
    assert [event.value for event in events.Scalars("landscape/lambda_max")] == [7.0, 30.0]


def test_tensorboard_takes_a_writer_that_is_there(tmp_path):
    class Writer:
        def __init__(self):
            self.seen = []

        def add_scalar(self, *arguments):
            self.seen.append(arguments)

        def flush(self):
            self.seen.append("flush")

    writer = Writer()
    TensorBoard(writer, prefix="")({"loss": 1.0}, 3)
    assert writer.seen == [("loss", 1.0, 3), "flush"]


class Run:
    """What the adapter uses of a W&B run, which drops values at steps before its last."""

    def __init__(self):
        self.metrics, self.logged = [], []

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)


def test_wandb_gets_an_axis_of_its_own():
    run = Run()
    logged(WandB(run))
    assert run.metrics == [("landscape/step", None), ("landscape/*", "landscape/step")]
    assert [values["landscape/step"] for values in run.logged] == [0, 40, 8]
    assert run.logged[2]["landscape/loss"] == 2.0


@pytest.mark.slow
def test_wandb_offline_writes_every_point(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="fastscape", dir=str(tmp_path), mode="offline", settings=wandb.Settings(silent=True))
    logged(WandB(run))
    summary = dict(run.summary)
    run.finish()
    assert summary["landscape/loss"] == 2.0
    (file,) = Path(tmp_path).rglob("*.wandb")
    assert b"landscape/lambda_max" in file.read_bytes()


def test_mlflow_logs_through_its_client():
    seen = []

    class Client:
        def log_metric(self, run, name, value, step):
            seen.append((run, name, value, step))

    logged(MLflow("abc", client=Client()))
    assert ("abc", "landscape/lambda_max", 30.0, 40) in seen
    assert len(seen) == 5


def test_mlflow_s_file_store_has_every_point(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.tracking.MlflowClient(tracking_uri=(tmp_path / "runs").as_uri())
    run = client.create_run(client.create_experiment("fastscape"))
    logged(MLflow(run, client=client))
    history = client.get_metric_history(run.info.run_id, "landscape/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 2.5), (8, 2.0), (40, 1.25)]
    assert json.dumps([metric.value for metric in history])
