"""The objective is the exact sample-weighted loss, a pure function, and refuses what it cannot evaluate."""

import copy
from functools import partial

import pytest
import torch
from conftest import TiedModel
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo


def double_loss(model, batches, criterion=F.cross_entropy):
    """Float64 reference: per-sample losses of all batches, averaged at once."""
    reference = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        outputs = torch.cat([reference(x.double() if x.is_floating_point() else x) for x, _ in batches])
        return float(criterion(outputs, torch.cat([targets for _, targets in batches])))


def test_loss_is_the_sample_weighted_mean_over_ragged_batches(bn_net):
    x, y = zoo.digits(samples=20)[0]
    ragged = [(x[:9], y[:9]), (x[9:18], y[9:18]), (x[18:], y[18:])]
    objective = fs.Objective(bn_net, ragged, criterion=F.cross_entropy)
    assert objective.batch_weights == (9, 9, 2)
    assert objective.loss() == pytest.approx(double_loss(bn_net, ragged), abs=1e-6)
    unweighted = sum(fs.Objective(bn_net, [batch], criterion=F.cross_entropy).loss() for batch in ragged) / 3
    assert abs(unweighted - objective.loss()) > 1e-3  # the mistake this guards against is visible here


def test_ignored_tokens_do_not_count():
    torch.manual_seed(0)
    model = nn.Embedding(7, 5)

    def batch(targets):
        return torch.arange(targets.numel()).reshape(targets.shape) % 7, targets

    first, second = torch.tensor([[1, 2, -100]]), torch.tensor([[3, -100, -100]])

    criterion = nn.CrossEntropyLoss()
    wrapped = nn.Sequential(model, _ClassesSecond())
    objective = fs.Objective(wrapped, [batch(first), batch(second)], criterion=criterion)
    assert objective.batch_weights == (2, 1)
    logits = model(torch.tensor([0, 1, 0])).detach()
    exact = F.cross_entropy(logits.double(), torch.tensor([1, 2, 3]))
    assert objective.loss() == pytest.approx(float(exact), abs=1e-6)


class _ClassesSecond(nn.Module):
    def forward(self, outputs):
        return outputs.movedim(-1, 1)


def test_class_weights_weigh_the_batches(digits):
    x, y = digits[0]
    torch.manual_seed(0)
    model, class_weight = zoo.mlp(hidden=(8,)), torch.rand(10) + 0.1
    criterion = nn.CrossEntropyLoss(weight=class_weight)
    objective = fs.Objective(model, [(x[:40], y[:40]), (x[40:47], y[40:47])], criterion=criterion)
    whole = criterion(model(x[:47]), y[:47]).detach()
    assert objective.loss() == pytest.approx(float(whole), abs=1e-6)


def test_dict_batches_and_token_weights():
    model = zoo.tiny_transformer(width=16, heads=2, layers=1)
    (inputs, targets), *_ = zoo.pydoc_text(samples=6, batch_size=6)
    batches = [
        {"tokens": inputs[:4], "labels": targets[:4], "meta": "kept"},
        {"tokens": inputs[4:, :20], "labels": targets[4:, :20], "meta": "kept"},
    ]
    objective = fs.Objective(
        model,
        batches,
        loss=lambda network, batch: F.cross_entropy(network(batch["tokens"]), batch["labels"]),
        weight=lambda batch: batch["labels"].numel(),
    )
    assert objective.batch_weights == (256, 40)
    model.eval()
    parts = [F.cross_entropy(model(b["tokens"]), b["labels"]).detach().double() * b["labels"].numel() for b in batches]
    assert objective.loss() == pytest.approx(float(sum(parts)) / 296, abs=1e-6)


def test_tuple_and_mapping_inputs_reach_the_model():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([2.0]))

        def forward(self, a, b):
            return self.scale * a - b

    a, b, target = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]), torch.zeros(2)
    for inputs in ((a, b), {"b": b, "a": a}):
        assert fs.Objective(Two(), [(inputs, target)], criterion=F.mse_loss).loss() == pytest.approx((1.5**2 + 3.5**2) / 2)


def test_a_generator_is_read_once_and_its_reused_buffer_copied(tanh_net, digits):
    x, y = digits[0]
    buffer = torch.empty(8, 1, 8, 8)

    def loader():
        for index in range(3):
            buffer.copy_(x[8 * index : 8 * index + 8])
            yield buffer, y[8 * index : 8 * index + 8]

    objective = fs.Objective(tanh_net, loader(), criterion=F.cross_entropy)
    plain = fs.Objective(tanh_net, [(x[:24], y[:24])], criterion=F.cross_entropy)
    assert objective.loss() == pytest.approx(plain.loss(), abs=1e-6)
    assert objective.loss() == objective.loss()


def test_a_shuffling_loader_leaves_the_generators_alone(tanh_net, digits, untouched):
    x, y = digits[0]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32, shuffle=True)
    with untouched(tanh_net):
        objective = fs.Objective(tanh_net, loader, criterion=F.cross_entropy)
        value = objective.loss()
    assert value == pytest.approx(double_loss(tanh_net, digits), abs=1e-6)


def test_parameters_are_selected_by_glob_predicate_and_trainability():
    model = zoo.mlp(hidden=(8, 6))
    data = zoo.digits(samples=4)

    def names(**arguments):
        return fs.Objective(model, data, criterion=F.cross_entropy, **arguments).names

    assert names() == ("1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias")
    assert names(params="*.bias") == ("1.bias", "3.bias", "5.bias")
    assert names(params=["1.*", "5.weight"]) == ("1.weight", "1.bias", "5.weight")
    assert names(params=lambda name, tensor: tensor.ndim == 2) == ("1.weight", "3.weight", "5.weight")
    model[1].weight.requires_grad_(False)
    assert "1.weight" not in names(params="*.weight")


def test_tied_parameters_count_once_and_move_together():
    torch.manual_seed(0)
    model = TiedModel()
    data = [(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]))]
    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    assert objective.size == 15
    assert objective.names == ("embed.weight",)
    assert fs.Objective(model, data, criterion=F.cross_entropy, params="head.*").names == ("embed.weight",)
    directions = fs.Directions(objective, count=1)
    moved = copy.deepcopy(model)
    moved.embed.weight.data += 0.3 * directions[0]["embed.weight"]
    for path in ("loop", "vmap"):
        value = fs.losses(objective, directions, [0.3], method=path)
        assert float(value) == pytest.approx(double_loss(moved, data), abs=1e-6)


def test_batch_norm_modes_use_the_right_statistics(bn_net, untouched):
    batches = [zoo.digits(samples=20)[0]]
    with untouched(bn_net):
        running = fs.Objective(bn_net, batches, criterion=F.cross_entropy).loss()
        batch = fs.Objective(bn_net, batches, criterion=F.cross_entropy, batch_norm="batch").loss()
    assert running == pytest.approx(double_loss(bn_net, batches), abs=1e-6)
    reference = copy.deepcopy(bn_net).eval()
    reference[1].train()
    expected = F.cross_entropy(reference(batches[0][0]), batches[0][1]).detach()
    assert batch == pytest.approx(float(expected), abs=1e-6)
    assert abs(batch - running) > 1e-3


def test_weights_are_read_when_asked_so_training_is_followed(tanh_net, digits):
    objective = fs.Objective(tanh_net, digits, criterion=F.cross_entropy)
    before = objective.loss()
    with torch.no_grad():
        tanh_net[1].weight.mul_(3)
    assert objective.loss() != before
    assert objective.loss() == pytest.approx(double_loss(tanh_net, digits), abs=1e-6)


def test_accuracy_and_norm(trained_mlp, digits):
    objective = fs.Objective(trained_mlp, digits, criterion=F.cross_entropy)
    x, y = digits[0]
    assert objective.accuracy() == float((trained_mlp(x).argmax(1) == y).double().mean())
    flat = torch.cat([tensor.flatten() for tensor in trained_mlp.parameters()]).double()
    assert objective.norm == pytest.approx(float(flat.norm().detach()), rel=1e-14)
    assert fs.Objective(trained_mlp, [(x, y.float())], criterion=lambda out, t: F.mse_loss(out[:, 0], t)).accuracy() is None


def test_fingerprints_see_one_bit(tanh_net, digits):
    x, y = digits[0]
    objective = fs.Objective(tanh_net, [(x.clone(), y)], criterion=F.cross_entropy)
    data, weights = objective.data_fingerprint(), objective.weight_fingerprint()
    assert objective.data_fingerprint() == data
    assert len(data) == 64
    changed = x.clone()
    changed[0, 0, 0, 0] = torch.nextafter(changed[0, 0, 0, 0], torch.tensor(9.0))
    assert fs.Objective(tanh_net, [(changed, y)], criterion=F.cross_entropy).data_fingerprint() != data
    with torch.no_grad():
        tanh_net[3].bias[0] = torch.nextafter(tanh_net[3].bias[0], torch.tensor(9.0))
    assert objective.weight_fingerprint() != weights


def test_gradient_is_autograds(tanh_net, digits, untouched):
    x, y = digits[0]
    objective = fs.Objective(tanh_net, [(x[:200], y[:200]), (x[200:], y[200:])], criterion=F.cross_entropy, dtype=torch.float64)
    with untouched(tanh_net):
        gradient = objective.gradient()
    model = copy.deepcopy(tanh_net).double()
    F.cross_entropy(model(x.double()), y).backward()
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(gradient[name], tensor.grad, rtol=1e-12, atol=1e-15)


def test_wrappers_are_taken_off_and_weight_norm_copies(tanh_net, digits):
    value = fs.Objective(tanh_net, digits, criterion=F.cross_entropy).loss()
    assert fs.Objective(torch.compile(tanh_net), digits, criterion=F.cross_entropy).loss() == value
    assert fs.Objective(nn.DataParallel(tanh_net), digits, criterion=F.cross_entropy).names[0] == "1.weight"
    tanh_net[1] = nn.utils.parametrizations.weight_norm(tanh_net[1])
    assert fs.Objective(tanh_net, digits, criterion=F.cross_entropy).loss() == pytest.approx(value, abs=1e-6)


def test_at_evaluates_another_state_dict(bn_net, bn_objective, untouched):
    state = {name: tensor.clone() for name, tensor in bn_net.state_dict().items()}
    state["5.weight"] *= 2
    state["1.running_mean"] += 0.5
    other = copy.deepcopy(bn_net)
    other.load_state_dict(state)
    with untouched(bn_net):
        value = bn_objective.at(state).loss()
    assert value == pytest.approx(double_loss(other, bn_objective.batches), abs=1e-6)
    assert value != bn_objective.loss()


# ---------------------------------------------------------------------- bad input


def quick(model=None, data=None, **arguments):
    arguments = {"criterion": F.cross_entropy} | arguments
    return fs.Objective(
        zoo.mlp(hidden=(4,)) if model is None else model, zoo.digits(samples=4) if data is None else data, **arguments
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": None}, "either criterion= .* or loss="),
        ({"loss": lambda model, batch: None}, "either criterion= .* or loss="),
        ({"criterion": nn.CrossEntropyLoss(reduction="sum")}, "reduction='sum'.*reduction='mean'"),
        ({"batch_norm": "train"}, "batch_norm must be .* got 'train'"),
        ({"dtype": torch.int32}, "dtype must be a floating-point .* got torch.int32"),
        ({"params": "nothing.*"}, "params='nothing.*': none matches; the names are 1.weight"),
        ({"memory": 10}, "data must fit in memory"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        quick(**arguments)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torchscript_is_refused_with_advice():
    with pytest.raises(TypeError, match="TorchScript.*pass the module it was scripted from"):
        quick(torch.jit.script(zoo.mlp(hidden=(4,))))


def test_unusable_models_are_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        quick(lambda inputs: inputs)
    with pytest.raises(ValueError, match="the model has no parameters"):
        quick(nn.Flatten())
    frozen = zoo.mlp(hidden=(4,)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"all 4 that match are frozen.*requires_grad_\(True\)"):
        quick(frozen)
    integers = nn.Module()
    integers.table = nn.Parameter(torch.arange(3), requires_grad=False)
    with pytest.raises(ValueError, match="hold integers"):
        quick(integers)
    with pytest.raises(ValueError, match="lazy tensor.*run one forward"):
        quick(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="meta device"):
        quick(nn.Linear(2, 2, device="meta"))


def test_unusable_data_is_refused(digits):
    x, y = digits[0]
    with pytest.raises(ValueError, match=r"data\[0\] must be a pair \(inputs, targets\).*use loss="):
        quick(data=[x])
    with pytest.raises(ValueError, match="at least one batch, got none"):
        fs.Objective(zoo.mlp(), iter(()), criterion=F.cross_entropy)
    with pytest.raises(TypeError, match=r"wrap a single batch as \[batch\]"):
        quick(data=x)
    with pytest.raises(ValueError, match="weight of a batch must be positive"):
        quick(data=[(x[:0], y[:0])])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"criterion": nn.CrossEntropyLoss},
            r"criterion must be an instance, got the class CrossEntropyLoss; write CrossEntropyLoss\(\)",
        ),
        ({"criterion": "cross_entropy"}, "criterion must be a function .* got 'cross_entropy'; pass such as torch.nn.functional"),
        ({"criterion": 3}, "criterion must be a function .* got 3"),
        ({"criterion": None, "loss": "mse"}, r"loss must be a function of \(model, batch\), got 'mse'"),
        ({"criterion": None, "loss": nn.MSELoss()}, "got MSELoss of .*; pass it as criterion="),
        ({"criterion": None, "loss": F.cross_entropy}, "got cross_entropy of .*; pass it as criterion="),
        ({"weight": 4}, "weight must be a function of a batch, got 4"),
    ],
)
def test_callables_of_the_wrong_kind_are_named(arguments, message):
    with pytest.raises(TypeError, match=message):
        quick(**arguments)


@pytest.mark.parametrize(("value", "found"), [(None, "None"), ("many", "'many'"), (torch.ones(3), r"a tensor of shape \(3,\)")])
def test_a_weight_that_is_no_number_is_named(value, found):
    with pytest.raises(ValueError, match=rf"weight must return the number of terms in a batch's mean, got {found} for data\[0\]"):
        quick(weight=lambda batch: value)
    assert quick(weight=lambda batch: torch.tensor(3)).batch_weights == (3.0,)


def test_arrays_and_a_bare_pair_of_tensors_are_refused_with_the_remedy(digits):
    x, y = digits[0]
    for batch in ((x.numpy(), y), (x, y.numpy()), ({"x": [x.numpy()]}, y)):
        with pytest.raises(
            ValueError, match=r"data\[0\] must hold tensors, got a NumPy array .* convert it with torch.from_numpy"
        ):
            quick(data=[batch])
    for pair in ((x, y), [x, y], (x.numpy(), y.numpy())):
        with pytest.raises(
            ValueError, match=r"got two tensors of shapes \(256, 1, 8, 8\) and \(256,\); write \[\(inputs, targets\)\]"
        ):
            quick(data=pair)
    model = zoo.mlp(hidden=(4,))
    loss = quick(model, [(x.numpy(), y)], criterion=None, loss=lambda net, batch: net(torch.from_numpy(batch[0])).mean())
    assert loss.loss() == quick(model, [x], criterion=None, loss=lambda net, batch: net(batch).mean()).loss()


COMPARING = [F.mse_loss, F.l1_loss, nn.MSELoss(), nn.SmoothL1Loss(), partial(F.huber_loss, delta=2.0)]


@pytest.mark.parametrize("criterion", COMPARING, ids=lambda criterion: getattr(criterion, "__name__", type(criterion).__name__))
def test_outputs_that_would_meet_every_target_are_refused(criterion):
    """[B, 1] - [B] is [B, B]: its mean is not the loss of the batch."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5)
    wrong = fs.Objective(model, [(x, y)], criterion=criterion)
    message = r"got outputs \(5, 1\) and targets \(5,\), which broadcast to \(5, 5\).*targets.unsqueeze"
    for evaluate in (wrong.loss, wrong.gradient, lambda: fs.multifractal(wrong, fs.ProbeSettings(count=2))):
        with pytest.raises(ValueError, match=message):
            evaluate()
    right = fs.Objective(model, [(x, y[:, None])], criterion=criterion)
    assert right.loss() == pytest.approx(float(criterion(model(x), y[:, None]).detach()), abs=1e-6)
    directions = fs.Directions(right, count=2)
    loop, batched = (fs.losses(right, directions, [0.1], method=path) for path in ("loop", "vmap"))
    torch.testing.assert_close(loop, batched, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_shapes_that_repeat_one_side_alone_are_taken():
    model = nn.Linear(3, 4)
    for targets in (torch.randn(4), torch.randn(1, 4), torch.randn(5, 1), torch.randn(())):
        value = fs.Objective(model, [(torch.ones(5, 3), targets)], criterion=F.mse_loss).loss()
        assert value == pytest.approx(float(F.mse_loss(model(torch.ones(5, 3)), targets).detach()), abs=1e-6)

    class First(nn.MSELoss):
        def forward(self, outputs, targets):
            return super().forward(outputs[:, 0], targets)

    one = nn.Linear(3, 1)
    for criterion in (First(), lambda outputs, targets: F.mse_loss(outputs[:, 0], targets)):
        assert fs.Objective(one, [(torch.ones(5, 3), torch.ones(5))], criterion=criterion).loss() >= 0


def test_losses_that_are_not_scalars_are_refused(digits):
    with pytest.raises(ValueError, match=r"0-dim floating-point tensor, got shape \(256,\)"):
        quick(data=digits, criterion=lambda out, target: F.cross_entropy(out, target, reduction="none")).loss()
    with pytest.raises(TypeError, match="got float; do not call .item"):
        quick(data=digits, criterion=lambda out, target: F.cross_entropy(out, target).item()).loss()
    with pytest.raises(ValueError, match="of torch.int64"):
        quick(data=digits, criterion=lambda out, target: (out.argmax(1) == target).sum()).loss()


def test_devices_must_match(digits):
    meta = [(torch.ones(2, 1, 8, 8, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta"))]
    with pytest.raises(ValueError, match=r"data\[0\] must be on the model's device cpu, got \['meta'\].*device='cpu'"):
        quick(data=meta)
    split = zoo.mlp(hidden=(4,))
    split.register_buffer("far", torch.ones(1, device="meta"))
    with pytest.raises(ValueError, match="meta device"):
        quick(split)


def test_state_dicts_that_do_not_fit_are_listed(bn_objective, bn_net):
    state = dict(bn_net.state_dict())
    del state["0.weight"]
    state["extra"] = torch.ones(1)
    state["5.bias"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"missing 0.weight; unexpected extra; 5.bias has shape \(3,\), the model \(10,\)"):
        bn_objective.at(state)


def test_a_model_that_cannot_be_copied_is_refused():
    class Uncopyable(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("holds a socket")

    with pytest.raises(TypeError, match="copyable with copy.deepcopy.*holds a socket"):
        quick(nn.Sequential(nn.Flatten(), Uncopyable(64, 10))).loss()


@pytest.mark.parametrize("third", [torch.nn.functional.cross_entropy, lambda model, batch: None, 3])
def test_what_comes_third_is_told_its_name(third):
    with pytest.raises(TypeError, match=r"^objective takes all but model and data by name, got .*; write criterion= for"):
        fs.Objective(torch.nn.Linear(2, 2), [(torch.ones(1, 2), torch.tensor([0]))], third)
