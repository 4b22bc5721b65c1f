"""A forward that writes into parameters leaves the user's alone, on every path, and the loss stays a function."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.evaluation.surface.surface import Surface


class Renorm(nn.Module):
    """Embeddings whose rows the forward shortens in place, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.head = way, nn.Linear(4, 3)
        if way == "bag":
            self.embed = nn.EmbeddingBag(7, 4, max_norm=0.5)
        else:
            self.embed = nn.Embedding(7, 4, max_norm=0.5 if way == "layer" else None)

    def forward(self, tokens):
        if self.way == "function":
            return self.head(torch.tanh(F.embedding(tokens, self.embed.weight, max_norm=0.5)).mean(1))
        if self.way == "data":
            self.embed.weight.data.clamp_(-0.4, 0.4)
        if self.way == "no_grad":
            with torch.no_grad():
                self.embed.weight.clamp_(-0.4, 0.4)
        found = self.embed(tokens)
        return self.head(torch.tanh(found if self.way == "bag" else found.mean(1)))


WAYS = ("layer", "bag", "function", "data", "no_grad")
TOKENS, CLASSES = torch.arange(18).reshape(6, 3) % 7, torch.arange(6) % 3
PROBES = {
    "loss": lambda o: o.loss(),
    "gradient": lambda o: o.gradient(),
    "losses by loop": lambda o: fs.losses(o, fs.Directions(o, 2), [0.1], method="loop"),
    "losses by vmap": lambda o: fs.losses(o, fs.Directions(o, 2), [0.1], method="vmap"),
    "responses": lambda o: fs.responses(o, fs.Directions(o, 2), [0.01]),
    "hessian": lambda o: fs.hessian(o) @ torch.ones(o.size),
    "forms": lambda o: fs.quadratic_forms(o, fs.Directions(o, 4)),
    "slice": lambda o: fs.slice1d(o, count=1, points=5),
    "temperature": lambda o: fs.temperature(o, batch_size=2, learning_rate=0.1, products=0),
}


def refusal(call, objective):
    """The words of an error, or nothing."""
    try:
        call(objective)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("params", ["head.*", None])
def test_every_probe_leaves_the_weights_alone(way, params, untouched):
    model = Renorm(way)
    reference = copy.deepcopy(model)
    want = float(F.cross_entropy(reference(TOKENS), CLASSES).detach())
    assert not torch.equal(reference.embed.weight, model.embed.weight)
    objective = fs.Objective(model, [(TOKENS, CLASSES)], criterion=F.cross_entropy, params=params)
    with untouched(model):
        refusals = [refusal(call, objective) for call in PROBES.values()]
    known = ("vmap", "in-place", "symmetric matrix", "not that of the loss")  # what cannot follow such a model says so
    assert all(any(word in text for word in known) for text in refusals if text), refusals
    assert objective.loss() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_losses_at_moved_weights_are_those_of_a_moved_model(way):
    model = Renorm(way)
    objective = fs.Objective(model, [(TOKENS[:4], CLASSES[:4]), (TOKENS[4:], CLASSES[4:])], criterion=F.cross_entropy)
    directions = fs.Directions(objective, 1)
    with Surface(objective, _line(objective, directions), method="loop") as surface:
        found = surface.at([0.0, 0.3, 0.0]).losses
    assert found[0] == found[2]
    for radius, value in ((0.0, found[0]), (0.3, found[1])):
        total = 0.0
        for batch in ((TOKENS[:4], CLASSES[:4]), (TOKENS[4:], CLASSES[4:])):
            moved = copy.deepcopy(model)
            for name, step in directions[0].items():
                moved.get_parameter(name).data += radius * step
            total += len(batch[1]) * float(F.cross_entropy(moved(batch[0]), batch[1]).detach())
        assert value == pytest.approx(total / 6, rel=1e-5)


def _line(objective, directions):
    from fastscape.evaluation.surface.families import Affine

    return Affine(list(objective.base.values()), [[directions[0][name] for name in objective.names]])


def test_the_writing_is_told_in_every_result():
    probed = fs.Objective(Renorm("layer"), [(TOKENS, CLASSES)], criterion=F.cross_entropy)
    assert "writes into the parameter 'embed.weight'" in probed.remarks[0]
    assert "Hessian products leave the writing out" in probed.remarks[0]
    held = fs.Objective(Renorm("layer"), [(TOKENS, CLASSES)], criterion=F.cross_entropy, params="head.*")
    assert "Hessian" not in held.remarks[0]
    assert fs.Objective(Renorm("none"), [(TOKENS, CLASSES)], criterion=F.cross_entropy).remarks == ()
    for result in (fs.slice1d(held, count=1, points=5), fs.barrier(held, held, Renorm("layer"), points=5, start=3)):
        assert held.remarks[0] in result.flags
        assert held.remarks[0] in result.to_dict()["flags"]


def test_parameters_that_are_left_alone_are_shared_and_others_are_not():
    model = Renorm("none")
    objective = fs.Objective(model, [(TOKENS, CLASSES)], criterion=F.cross_entropy, params="head.*")
    assert objective.replica(torch.float32).module.model.embed.weight.data_ptr() == model.embed.weight.data_ptr()
    model = Renorm("layer")
    objective = fs.Objective(model, [(TOKENS, CLASSES)], criterion=F.cross_entropy, params="head.*")
    assert objective.replica(torch.float32).module.model.embed.weight.data_ptr() != model.embed.weight.data_ptr()


def test_a_batch_that_alone_makes_the_forward_write_is_seen(untouched):
    class Late(Renorm):
        def forward(self, tokens):
            if len(tokens) < 3:
                self.embed.weight.data.clamp_(-0.1, 0.1)
            return super().forward(tokens)

    model = Late("none")
    data = [(TOKENS[:4], CLASSES[:4]), (TOKENS[4:], CLASSES[4:])]
    objective = fs.Objective(model, data, criterion=F.cross_entropy, params="head.*")
    with untouched(model):
        values = fs.losses(objective, fs.Directions(objective, 1), [0.0], method="loop")
    clipped = copy.deepcopy(model)
    parts = [float(F.cross_entropy(clipped(x), y).detach()) for x, y in data]
    np.testing.assert_allclose(float(values[0, 0]), (4 * parts[0] + 2 * parts[1]) / 6, rtol=1e-6)


def test_a_forward_that_begins_to_write_is_refused():
    class Fickle(Renorm):
        calls = 0

        def forward(self, tokens):
            Fickle.calls += 1
            if Fickle.calls > 3:
                with torch.no_grad():
                    self.embed.weight.clamp_(-0.4, 0.4)
            return super().forward(tokens)

    objective = fs.Objective(Fickle("none"), [(TOKENS, CLASSES)], criterion=F.cross_entropy, params="head.*")
    assert objective.loss() == objective.loss()
    with pytest.raises(RuntimeError, match="wrote into one not probed on batch 0"):
        objective.loss()


@pytest.mark.parametrize(
    "probe",
    [
        lambda o: fs.multifractal(o, fs.ProbeSettings(count=4), fs.AnalysisSettings(bootstrap=2, permutations=1)),
        lambda o: fs.spectrum(o, k=1),
        lambda o: fs.sharpness(o, restarts=1, steps=2, samples=4, products=6),
        lambda o: fs.temperature(o, batch_size=2, learning_rate=0.1, products=0),
        lambda o: fs.barriers(o, [o.model, Renorm("layer")], points=3, start=3),
    ],
)
def test_results_of_every_kind_tell_it_once_also_when_loaded(probe, tmp_path):
    objective = fs.Objective(Renorm("layer"), [(TOKENS, CLASSES)], criterion=F.cross_entropy, params="head.*")
    result = probe(objective)
    loaded = fs.load(result.save(tmp_path / "result"))
    for found in (result, loaded):
        assert [flag for flag in found.flags if "writes into" in flag] == list(objective.remarks)
        assert "writes into" in " ".join(str(found).split())
