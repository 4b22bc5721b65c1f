"""What batches weigh where nobody says it, how a guess is told, and sums that are no means."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.evaluation.samples import rows_of


class Rows(nn.Module):
    """Logits per position."""

    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(9, width), nn.Linear(width, 9)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)))


class TinyForCausalLM(Rows):
    """Shifts its labels as Hugging Face's causal models do."""

    def forward(self, input_ids, labels):
        logits = super().forward(input_ids)
        return F.cross_entropy(logits[:, :-1].reshape(-1, 9), labels[:, 1:].reshape(-1), ignore_index=-100)


def tokens(rows, length, seed, keep):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 9, (rows, length), generator=generator)
    kept = torch.rand(rows, length, generator=generator) < torch.linspace(keep, 1.0, rows)[:, None]
    kept[:, 0] = kept[:, 1] = True
    return {"input_ids": ids, "labels": torch.where(kept, ids, -100)}


BATCHES = [tokens(4, 10, 0, 0.2), tokens(3, 6, 1, 0.8)]


def masked(model, batch):
    return F.cross_entropy(model(batch["input_ids"]).transpose(1, 2), batch["labels"])


def mean_over(model, batches, loss, counts):
    values = [float(loss(model, batch).detach()) for batch in batches]
    return float(np.average(values, weights=counts))


def test_labels_that_are_ignored_do_not_count():
    objective = fs.Objective(Rows(), BATCHES, loss=masked)
    counts = [int((batch["labels"] != -100).sum()) for batch in BATCHES]
    assert objective.batch_weights == tuple(map(float, counts))
    assert objective.loss() == pytest.approx(mean_over(objective.model, BATCHES, masked, counts), rel=1e-6)
    assert "their labels, without those of -100, as the halves of data[0] confirm" in objective.remarks[0]


def test_causal_language_models_count_labels_that_follow_another():
    def loss(model, batch):
        return model(**batch)

    model = TinyForCausalLM()
    objective = fs.Objective(model, BATCHES, loss=loss)
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in BATCHES]
    assert objective.batch_weights == tuple(map(float, counts))
    assert objective.loss() == pytest.approx(mean_over(model, BATCHES, loss, counts), rel=1e-6)
    assert "from the second position on" in objective.remarks[0]


def test_a_shift_is_found_by_measurement_where_no_name_tells_it():
    class Nameless(TinyForCausalLM):
        pass

    objective = fs.Objective(Nameless(), BATCHES, loss=lambda model, batch: model(**batch))
    assert objective.batch_weights == tuple(float((batch["labels"][:, 1:] != -100).sum()) for batch in BATCHES)
    assert "confirm" in objective.remarks[0]


def test_a_mean_over_rows_is_found_by_measurement():
    """Every sequence counts alike, however many of its labels are kept."""

    def loss(model, batch):
        each = F.cross_entropy(model(batch["input_ids"]).transpose(1, 2), batch["labels"], reduction="none")
        return (each.sum(1) / (batch["labels"] != -100).sum(1)).mean()

    objective = fs.Objective(Rows(), BATCHES, loss=loss)
    assert objective.batch_weights == (4.0, 3.0)
    assert objective.loss() == pytest.approx(mean_over(objective.model, BATCHES, loss, (4, 3)), rel=1e-6)


def test_what_cannot_be_measured_is_told_as_a_guess():
    whole = [{"input_ids": batch["input_ids"], "labels": batch["input_ids"]} for batch in BATCHES]
    objective = fs.Objective(Rows(), whole, loss=masked)  # all rows of a batch count alike
    assert objective.batch_weights == (40.0, 18.0)
    assert "a guess: pass weight=" in objective.remarks[0]
    told = fs.slice1d(objective, count=1, points=5)
    assert objective.remarks[0] in told.flags
    assert told.meta["remarks"] == list(objective.remarks)
    finding = next(found for found in fs.doctor(objective).model if found.check == "data")
    assert finding.severity == "warning"
    assert "a guess" in finding.found
    for said in ({"weight": lambda batch: batch["labels"].numel()}, {"samples": lambda batch: len(batch["labels"])}):
        assert fs.Objective(Rows(), whole, loss=masked, **said).remarks == ()


def test_a_loss_that_fits_no_count_is_told():
    def loss(model, batch):
        return masked(model, batch) ** 2

    assert "do not confirm" in fs.Objective(Rows(), BATCHES, loss=loss).remarks[0]


def test_one_batch_needs_no_guess():
    assert fs.Objective(Rows(), BATCHES[:1], loss=masked).remarks == ()


def test_lists_of_images_count_images_and_are_not_cut():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 2, 3)

    def batch(n):
        return [torch.rand(3, 8, 8) for _ in range(n)], [{"label": torch.tensor([1])} for _ in range(n)]

    def loss(model, batch):
        return torch.stack([F.cross_entropy(model(x[None]).mean((2, 3)), y["label"]) for x, y in zip(*batch, strict=True)]).mean()

    objective = fs.Objective(model, [batch(3), batch(1)], loss=loss)
    assert objective.batch_weights == (3.0, 1.0)
    assert [rows_of(objective, each) for each in objective.batches] == [1, 1]


def test_time_major_batches_count_sequences_by_their_labels():
    """[T, B, features] with one label per sequence: neither the weights nor the samples are those of the time axis."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.RNN(2, 3), "head": nn.Linear(3, 3)})

    def loss(model, batch):
        return F.cross_entropy(model["head"](model["rnn"](batch[0])[1][0]), batch[1])

    data = [(torch.randn(7, n, 2), torch.arange(n) % 3) for n in (2, 5)]
    objective = fs.Objective(model, data, loss=loss)
    assert objective.batch_weights == (2.0, 5.0)
    assert [rows_of(objective, each) for each in objective.batches] == [1, 1]
    assert objective.loss() == pytest.approx(mean_over(model, data, loss, (2, 5)), rel=1e-6)


def test_nodes_of_a_graph_are_not_cut():
    torch.manual_seed(0)
    x, edges, y = torch.randn(6, 4), torch.randint(0, 6, (2, 9)), torch.arange(6) % 3

    def loss(model, batch):
        mixed = batch[0] + torch.zeros_like(batch[0]).index_add(0, batch[1][0], batch[0][batch[1][1]])
        return F.cross_entropy(model(mixed), batch[2])

    data = [(x, edges, y)] * 3
    objective = fs.Objective(nn.Linear(4, 3), data, loss=loss)
    assert objective.count(objective.batches[0]) == 6
    assert rows_of(objective, objective.batches[0]) == 1
    found = fs.temperature(objective, batch_size=2, learning_rate=0.1, products=0)
    assert found.units == 3
    assert any("cannot be cut into its 6 samples" in flag for flag in found.flags)


def test_samples_may_be_said():
    x, y = torch.randn(6, 4), torch.arange(6) % 3

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def of(samples):
        return fs.Objective(nn.Linear(4, 3), [(x, y), (x[:4], y[:4])], loss=loss, samples=samples)

    assert of(2).batch_weights == (2.0, 2.0)
    assert of(lambda batch: len(batch[1])).batch_weights == (6.0, 4.0)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        of(0)
    with pytest.raises(ValueError, match=r"samples\(batch\) must be an integer, got 2.5"):
        of(lambda batch: 2.5)


def test_ragged_batches_whose_count_cannot_be_confirmed_are_told_as_a_guess():
    """The loss of a graph is a mean over the nodes of a mask, which only the user knows."""
    torch.manual_seed(0)

    def batch(n):
        return {"x": torch.randn(n, 4), "edges": torch.zeros(2, 3, dtype=torch.long), "y": torch.arange(n) % 3}

    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"])

    guessed = fs.Objective(nn.Linear(4, 3), [batch(6), batch(30)], loss=loss)
    assert guessed.batch_weights == (6.0, 30.0)
    assert "weighted by their samples, a guess: pass weight=" in guessed.remarks[0]
    said = fs.Objective(nn.Linear(4, 3), [batch(6), batch(30)], loss=loss, weight=lambda batch: len(batch["y"]))
    assert said.remarks == ()
    plain = [{key: value for key, value in batch(n).items() if key != "edges"} for n in (6, 30)]
    assert fs.Objective(nn.Linear(4, 3), plain, loss=loss).remarks == ()  # its halves confirm it


def test_a_sum_over_a_list_of_images_is_measured():
    def data(n):
        return [torch.rand(3, 4, 4) for _ in range(n)], [{"label": torch.tensor([1])} for _ in range(n)]

    def loss(model, batch, reduce=torch.sum):
        terms = [F.cross_entropy(model(x.flatten()[None]), y["label"]) for x, y in zip(*batch, strict=True)]
        return reduce(torch.stack(terms))

    with pytest.raises(ValueError, match="loss must be a mean over the samples of a batch, got a sum"):
        fs.Objective(nn.Linear(48, 3), [data(3), data(2)], loss=loss).loss()
    mean = fs.Objective(nn.Linear(48, 3), [data(3), data(2)], loss=lambda model, batch: loss(model, batch, torch.mean))
    assert mean.batch_weights == (3.0, 2.0)
    assert mean.remarks == ()


# ---------------------------------------------------------------------- sums


X, Y = torch.linspace(-1, 1, 24).reshape(6, 4), torch.arange(6) % 3


def summed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none").sum()


class Summing(nn.Module):
    def __init__(self):
        super().__init__()
        self.each = nn.CrossEntropyLoss(reduction="none")

    def forward(self, outputs, targets):
        return self.each(outputs, targets).sum()


@pytest.mark.parametrize(
    "criterion",
    [
        partial(F.cross_entropy, reduction="sum"),
        partial(partial(F.cross_entropy, reduction="sum"), ignore_index=-1),
        partial(F.mse_loss, size_average=False),
        partial(nn.CrossEntropyLoss(reduction="sum")),
        nn.CrossEntropyLoss(reduction="sum"),
    ],
)
def test_reductions_are_found_inside_partial(criterion):
    with pytest.raises(ValueError, match="criterion must be a mean over the batch, got reduction='sum'; use reduction='mean'"):
        fs.Objective(nn.Linear(4, 3), [(X, Y)], criterion=criterion)


@pytest.mark.parametrize("criterion", [summed, Summing(), lambda outputs, targets: 0.5 * summed(outputs, targets)])
@pytest.mark.parametrize(
    "call", [lambda o: o.loss(), lambda o: fs.slice1d(o, count=1), lambda o: fs.hessian(o) @ torch.ones(o.size)]
)
def test_sums_are_measured_and_refused_before_any_number(criterion, call):
    objective = fs.Objective(nn.Linear(4, 3), [(X, Y), (X[:4], Y[:4])], criterion=criterion)
    with pytest.raises(ValueError, match="criterion must be a mean .* got a sum: .* 2 times as large; divide .* weight=lambda"):
        call(objective)


def test_sums_of_a_loss_are_measured_and_refused():
    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")

    data = [{"x": X, "y": Y}, {"x": X[:4], "y": Y[:4]}]
    with pytest.raises(ValueError, match="loss must be a mean over the samples of a batch, got a sum"):
        fs.Objective(nn.Linear(4, 3), data, loss=loss).loss()
    with pytest.raises(ValueError, match="got a sum"):
        fs.Objective(nn.Linear(4, 3), data, loss=loss, weight=lambda batch: len(batch["y"])).loss()
    finding = next(found for found in fs.doctor(fs.Objective(nn.Linear(4, 3), data, loss=loss)).model if found.check == "loss")
    assert finding.severity == "error"
    assert "got a sum" in finding.found


def test_a_sum_that_is_meant_is_taken_and_told():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    objective = fs.Objective(model, [(X, Y), (X[:4], Y[:4])], criterion=summed, weight=lambda batch: 1)
    parts = [float(summed(model(x), y).detach()) for x, y in ((X, Y), (X[:4], Y[:4]))]
    assert objective.loss() == pytest.approx(sum(parts) / 2, rel=1e-6)
    assert objective.remarks == ("the loss of a batch is a sum over its samples",)
    single = [(X[index : index + 1], Y[index : index + 1]) for index in range(3)]
    fs.Objective(model, single, criterion=summed).loss()  # of one sample sum and mean are one


def contrastive(model, batch):
    e = F.normalize(model(batch[0]))
    return F.cross_entropy(e @ e.T / 0.1 - 1e4 * torch.eye(len(e), dtype=e.dtype), batch[1])


def triplet(model, batch):
    e = model(batch[0])
    return F.triplet_margin_loss(e[:2], e[2:4], e[4:6], margin=5.0)


def counted_by_hand(model, batch):
    return F.mse_loss(model(batch["x"]), batch["t"], reduction="sum") / (3 * batch["n"])


@pytest.mark.parametrize(
    ("loss", "data", "remarks"),
    [
        (contrastive, (X, Y), 1),
        (triplet, (X, Y), 0),
        (counted_by_hand, {"x": X, "t": torch.zeros(6, 3), "n": 6}, 0),
        (lambda model, batch: F.mse_loss(model(batch), torch.zeros(len(batch), 3)), X, 0),
        (lambda model, batch: F.mse_loss(model(batch), torch.zeros(6, 3)), X, 0),
        (lambda model, _batch: model.weight.square().sum(), X, 0),
        (lambda model, _batch: 0 * model.weight.sum(), X, 0),
    ],
)
def test_losses_that_are_no_sums_are_not_refused(loss, data, remarks):
    torch.manual_seed(0)
    objective = fs.Objective(nn.Linear(4, 3), [data], loss=loss)
    value = objective.loss()
    assert value == pytest.approx(float(torch.as_tensor(loss(objective.model, data)).detach()), rel=1e-5)
    assert len(objective.remarks) == remarks
    assert all("depends on its size" in remark for remark in objective.remarks)


def test_batchmean_counts_samples():
    logs, targets = torch.randn(6, 3).log_softmax(1), torch.randn(6, 3).softmax(1)
    for criterion in (nn.KLDivLoss(reduction="batchmean"), partial(F.kl_div, reduction="batchmean")):
        model = nn.Linear(3, 3)
        objective = fs.Objective(model, [(logs, targets), (logs[:2], targets[:2])], criterion=criterion)
        assert objective.batch_weights == (6.0, 2.0)
        whole = torch.cat([logs, logs[:2]]), torch.cat([targets, targets[:2]])
        assert objective.loss() == pytest.approx(float(criterion(model(whole[0]), whole[1]).detach()), rel=1e-5)


def test_a_batch_whose_targets_are_all_ignored_is_named():
    data = [(X, Y), (X, torch.full((6,), -100))]
    with pytest.raises(ValueError, match=r"data\[1\] must hold a target that counts, got all 6 targets equal to -100"):
        fs.Objective(nn.Linear(4, 3), data, criterion=F.cross_entropy)
