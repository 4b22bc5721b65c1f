"""Targets that a criterion cannot take, or takes for nothing: named with the batch, what it holds and what to write."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 1])
CRITERIA = [F.cross_entropy, nn.CrossEntropyLoss(), partial(F.cross_entropy, label_smoothing=0.1)]


def model_of(outputs=3):
    torch.manual_seed(0)
    return nn.Linear(5, outputs)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.bool])
def test_class_targets_of_another_integer_are_named_before_any_work(criterion, dtype, untouched):
    model, data = model_of(), [(X, LABELS), (X, LABELS.to(dtype))]
    with (
        untouched(model),
        pytest.raises(
            ValueError,
            match=rf"data\[1\] must hold class targets of torch.int64.*got targets \(4,\) of {dtype}; use targets.long()",
        ),
    ):
        fs.Objective(model, data, criterion=criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_class_targets_as_floats_are_named(criterion):
    with pytest.raises(
        ValueError, match=r"data\[0\] must hold class targets.*got targets \(4,\) of torch.float32; use targets.long"
    ):
        fs.Objective(model_of(), [(X, LABELS.float())], criterion=criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_probabilities_and_bytes_are_taken(criterion):
    plain = fs.Objective(model_of(), [(X, LABELS)], criterion=criterion).loss()
    chances = fs.Objective(model_of(), [(X, F.one_hot(LABELS, 3).float())], criterion=criterion).loss()
    assert chances == pytest.approx(plain, rel=1e-6)
    assert fs.Objective(model_of(), [(X, LABELS.to(torch.uint8))], criterion=criterion).loss() == plain


@pytest.mark.parametrize("criterion", [F.mse_loss, nn.MSELoss(), F.l1_loss, partial(F.huber_loss, delta=0.5)])
def test_whole_numbers_as_targets_of_regression_are_the_floats_they_are(criterion):
    """torch takes them for the loss, and fails in its gradient."""
    whole, floats = (
        fs.Objective(model_of(1), [(X, targets[:, None])], criterion=criterion) for targets in (LABELS, LABELS.float())
    )
    assert whole.loss() == floats.loss()
    for found, expected in zip(whole.gradient().values(), floats.gradient().values(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("criterion", "targets", "words"),
    [
        (F.binary_cross_entropy_with_logits, torch.ones(3, 4), r"outputs \(4, 3\) of torch.float32 and targets \(3, 4\)"),
        (F.cross_entropy, torch.full((4,), 7), r"outputs \(4, 3\) of torch.float32 and targets \(4,\) of torch.int64"),
        (
            F.cross_entropy,
            torch.zeros(5, dtype=torch.long),
            r"outputs \(4, 3\) of torch.float32 and targets \(5,\) of torch.int64",
        ),
        (lambda outputs, targets: F.binary_cross_entropy(outputs.sigmoid(), targets), LABELS[:, None].expand(4, 3) % 2, "float"),
    ],
)
def test_what_a_criterion_fails_on_is_told_with_shapes_and_dtypes(criterion, targets, words):
    objective = fs.Objective(model_of(), [(X, targets)], criterion=criterion)
    with pytest.raises((RuntimeError, ValueError, IndexError)) as refused:
        objective.loss()
    notes = " ".join(refused.value.__notes__)
    assert "criterion was given outputs" in notes
    assert re.search(words, notes)


def test_outputs_of_another_kind_are_told_with_the_remedy():
    class Record(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    objective = fs.Objective(Record(5, 3), [(X, LABELS)], criterion=F.cross_entropy)
    with pytest.raises(TypeError) as refused:
        objective.loss()
    assert "outputs of type dict" in " ".join(refused.value.__notes__)
    assert "pass output='logits', or a function" in " ".join(refused.value.__notes__)


@pytest.mark.parametrize(
    ("criterion", "ignored"),
    [
        (F.cross_entropy, -100),
        (nn.CrossEntropyLoss(ignore_index=1), 1),
        (partial(F.cross_entropy, ignore_index=0), 0),
    ],
)
def test_a_batch_of_ignored_targets_is_named(criterion, ignored, untouched):
    model, nothing = model_of(), torch.full((4,), ignored)
    with (
        untouched(model),
        pytest.raises(
            ValueError,
            match=rf"data\[1\] must hold a target that counts, got all 4 targets equal to {ignored}.*leave the batch out",
        ),
    ):
        fs.Objective(model, [(X, torch.where(ignored == LABELS, 2, LABELS)), (X, nothing)], criterion=criterion)


def test_labels_of_transformers_that_are_all_ignored_are_named():
    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["labels"])

    full, empty = {"x": X, "labels": LABELS}, {"x": X, "labels": torch.full((4,), -100)}
    with pytest.raises(ValueError, match=r"data\[1\] must hold a target that counts, got all 4 targets equal to -100"):
        fs.Objective(model_of(), [full, empty], loss=loss)
    assert len(fs.Objective(model_of(), [full], loss=loss).batches) == 1


def test_an_empty_batch_is_named():
    with pytest.raises(ValueError, match=r"weight of a batch must be positive and finite, got 0.0 for data\[1\]; .*Leave it out"):
        fs.Objective(model_of(), [(X, LABELS), (X[:0], LABELS[:0])], criterion=F.cross_entropy)
