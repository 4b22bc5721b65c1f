"""The callbacks under the real Lightning and Hugging Face trainers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fastscape as fs
from fastscape import zoo

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning on workers and log intervals; torch on pinned memory
]


@pytest.fixture(scope="module")
def batch():
    return zoo.digits(samples=64)[0]


def trained_by_lightning(batch, callbacks, *, fail_at=None, decay=None):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = zoo.mlp(hidden=(8,))

        def training_step(self, batch, index):
            if index == fail_at:
                raise RuntimeError("no data")
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            if decay is None:
                return optimizer
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    torch.manual_seed(0)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
        callbacks=callbacks(module),
    )
    loader = DataLoader(TensorDataset(*batch), batch_size=8)
    trainer.fit(module, loader)
    return module


def test_lightning_trains_the_same_with_the_callback_and_points_are_optimizer_steps(batch):
    pytest.importorskip("lightning.pytorch")
    from fastscape.integrations.lightning import TrackerCallback

    plain = trained_by_lightning(batch, lambda module: [])
    held = []

    def callbacks(module):
        objective = fs.Objective(module.net, [batch], criterion=F.cross_entropy)
        sum_ = fs.Difficulty(objective, every=4)
        held.append(fs.Tracker(objective, every=2, share=1e6, difficulty=sum_))
        return [TrackerCallback(held[0])]

    tracked = trained_by_lightning(batch, callbacks)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), tracked.parameters(), strict=True))
    found = held[0].result
    assert [point.step for point in found.points] == [0, 2, 4, 6, 8]
    assert found.points[-1].values["loss"] == fs.Objective(tracked.net, [batch], criterion=F.cross_entropy).loss()
    assert found.points[-1].values["critical"] == pytest.approx(2 * 1.9 / 0.1)
    assert held[0].difficulty.result.step == 8


def test_a_step_in_lightning_counts_with_its_own_learning_rate_not_the_next_one(batch):
    pytest.importorskip("lightning.pytorch")
    from fastscape.integrations.lightning import TrackerCallback

    held = []

    def callbacks(module):
        objective = fs.Objective(module.net, [batch], criterion=F.cross_entropy)
        held.append(fs.Tracker(objective, every=4, what=("loss",), difficulty=fs.Difficulty(objective, every=4)))
        return [TrackerCallback(held[0])]

    trained_by_lightning(batch, callbacks, decay=0.5)
    assert held[0].difficulty.result.learning_rates == pytest.approx([0.1 * 0.5**step for step in range(8)])


def test_after_an_exception_in_lightning_the_record_is_closed(batch, tmp_path):
    pytest.importorskip("lightning.pytorch")
    from fastscape.integrations.lightning import TrackerCallback

    held = []

    def callbacks(module):
        objective = fs.Objective(module.net, [batch], criterion=F.cross_entropy)
        held.append(fs.Tracker(objective, every=1, share=1e6, what=("loss",), path=tmp_path / "a.jsonl"))
        return [TrackerCallback(held[0])]

    with pytest.raises(RuntimeError, match="no data"):
        trained_by_lightning(batch, callbacks, fail_at=5)
    assert [point.step for point in held[0].result.points] == [0, 1, 2]
    assert '"end"' in (tmp_path / "a.jsonl").read_text()


class Classifier(nn.Module):
    """A model in the form that Hugging Face's Trainer takes."""

    def __init__(self):
        super().__init__()
        self.net = zoo.mlp(hidden=(8,))

    def forward(self, inputs, labels=None):
        outputs = self.net(inputs)
        return {"loss": F.cross_entropy(outputs, labels), "logits": outputs}


def trained_by_transformers(batch, callbacks, folder):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model = Classifier()
    rows = [{"inputs": inputs, "labels": target} for inputs, target in zip(*batch, strict=True)]
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
    )
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=rows, callbacks=callbacks(model))
    trainer.train()
    return model


def test_transformers_trains_the_same_with_the_callback_and_gradients_are_there(batch, tmp_path):
    pytest.importorskip("accelerate")
    from fastscape.integrations.huggingface import TrackerCallback

    plain = trained_by_transformers(batch, lambda model: [], tmp_path)
    held = []

    def callbacks(model):
        objective = fs.Objective(model, [batch], loss=lambda model, batch: model(*batch)["loss"])
        held.append(fs.Tracker(objective, every=2, share=1e6, difficulty=fs.Difficulty(objective, every=4)))
        return [TrackerCallback(held[0])]

    tracked = trained_by_transformers(batch, callbacks, tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), tracked.parameters(), strict=True))
    found = held[0].result
    assert [point.step for point in found.points] == [0, 2, 4, 6, 8]
    assert "preconditioned_sharpness" in found.names
    assert held[0].difficulty.result.step == 8
    assert held[0].difficulty.result.value > 0
