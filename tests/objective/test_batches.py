"""Batches of every type are read once, copied, cast and told apart."""

import collections
import dataclasses
import threading
import types
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils import _pytree

import fastscape as fs
from fastscape.objective.batches import available_memory, materialise, placed
from fastscape.objective.structures import tensors_of


@dataclasses.dataclass
class Graph:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "g"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "g"


class Fields(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    name: str = "g"


class Slots:
    __slots__ = ("name", "x", "y")

    def __init__(self, x, y, name="g"):
        self.x, self.y, self.name = x, y, name


class Plain:
    """An object that holds itself."""

    def __init__(self, x, y, name="g"):
        self.x, self.y, self.name, self.me = x, y, name, self


class Registered:
    """Knows its parts by torch's registry alone: it refuses to be copied."""

    def __init__(self, x, y, name="g"):
        self.x, self.y, self.name = x, y, name

    def __reduce_ex__(self, protocol):
        raise TypeError("not copied")


_pytree.register_pytree_node(Registered, lambda v: ([v.x, v.y], v.name), lambda parts, name: Registered(*parts, name))


class Attributes(dict):
    """Its ``__getattr__`` raises KeyError, which ``copy.deepcopy`` does not expect."""

    __getattr__ = dict.__getitem__


def attributes(x, y, name="g"):
    return Attributes(x=x, y=y, name=name)


def user_dict(x, y, name="g"):
    class Named(collections.UserDict):
        def __getattr__(self, key):
            if key == "data":
                raise AttributeError(key)
            return self.data[key]

    return Named(x=x, y=y, name=name)


def namespace(x, y, name="g"):
    return types.SimpleNamespace(x=x, y=y, name=name)


def nested(x, y, name="g"):
    return types.SimpleNamespace(x=x, y=y, name=name, more={"deep": [Graph(x, y)]})


KINDS = [Graph, Frozen, Fields, Slots, Plain, Registered, attributes, user_dict, namespace, nested]


def loss(model, batch):
    return F.cross_entropy(model(batch.x), batch.y)


def data_of(kind, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return kind(torch.randn(n, 4, generator=generator), torch.arange(n) % 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_copied_cast_and_told_apart(kind, model):
    batch = data_of(kind)
    plain = fs.Objective(model, [(batch.x.clone(), batch.y.clone())], criterion=F.cross_entropy)
    objective = fs.Objective(model, [batch], loss=loss)
    assert objective.loss() == plain.loss()
    assert objective.data_fingerprint() == fs.Objective(model, [data_of(kind)], loss=loss).data_fingerprint()
    assert objective.data_fingerprint() != fs.Objective(model, [data_of(kind, seed=1)], loss=loss).data_fingerprint()
    named = kind(batch.x, batch.y, "h")
    assert objective.data_fingerprint() != fs.Objective(model, [named], loss=loss).data_fingerprint()
    assert type(objective.batches[0]) is type(batch)
    assert objective.replica(torch.float64).batches[0].x.dtype == torch.float64
    directions = fs.Directions(plain, 1)
    for precision in ("float64", "difference"):
        found, want = (fs.responses(o, directions, [0.1], precision=precision) for o in (objective, plain))
        np.testing.assert_allclose(found.even, want.even, rtol=1e-6)
    before = objective.loss()
    batch.x.zero_()
    assert objective.loss() == before


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_labels(kind, model):
    batches = [data_of(kind, 6), data_of(kind, 30, seed=1)]
    objective = fs.Objective(model, batches, loss=loss)
    assert objective.batch_weights == (6.0, 30.0)
    whole = torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])
    assert objective.loss() == pytest.approx(float(F.cross_entropy(model(whole[0]), whole[1]).detach()), rel=1e-6)


def test_a_tensor_in_two_places_stays_one(model):
    x = torch.randn(5, 4)
    held = materialise([(x, {"again": x})], None)[0]
    assert held[0] is held[1]["again"]
    assert held[0] is not x
    cast = placed(held, torch.device("cpu"), torch.float64)
    assert cast[0] is cast[1]["again"]
    assert cast[0].dtype == torch.float64


def test_arrays_are_copied_fingerprinted_and_cast(model):
    def weighted(model, batch):
        rows = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
        return (rows * torch.from_numpy(batch["w"])).mean()

    def batch():
        return {"x": torch.ones(4, 4), "y": torch.arange(4) % 3, "w": np.linspace(0.5, 1.5, 4, dtype=np.float32)}

    mine = batch()
    objective = fs.Objective(model, [mine], loss=weighted)
    before = objective.loss(), objective.data_fingerprint()
    mine["w"][:] = 0
    assert (objective.loss(), objective.data_fingerprint()) == before
    assert fs.Objective(model, [mine], loss=weighted).data_fingerprint() != before[1]
    replica = objective.replica(torch.float64)
    assert replica.batches[0]["w"].dtype == np.float64
    assert objective.replica(torch.bfloat16).batches[0]["w"].dtype == np.float32


@pytest.mark.parametrize(
    "change",
    [{"key": 2}, {"flag": True}, {"kind": torch.float64}, {"tags": {"a", "c"}}, {"when": np.int64(4)}, {"pair": (1, (2, 4))}],
)
def test_fingerprints_see_what_is_no_tensor(change):
    def of(**constants):
        base = {"key": 1, "flag": False, "kind": torch.float32, "tags": {"a", "b"}, "when": np.int64(3), "pair": (1, (2, 3))}
        batch = {"x": torch.ones(2, 3), **base, **constants}
        return fs.Objective(nn.Linear(3, 1), [batch], loss=lambda m, b: m(b["x"]).mean()).data_fingerprint()

    assert of() == of()
    assert of(**change) != of()


def test_fingerprints_see_keys_and_structure():
    a, b = torch.ones(2), torch.zeros(2)

    def of(batch: Any):
        return fs.Objective(nn.Linear(3, 1), [batch], loss=lambda m, _: m.weight.mean()).data_fingerprint()

    assert of({"a": a, "b": b}) != of({"b": a, "a": b})
    assert of(((a, b), a)) != of((a, (b, a)))


def test_fingerprints_of_plain_batches_are_those_of_earlier_versions():
    objective = fs.Objective(
        nn.Linear(3, 1), [(torch.arange(6.0).reshape(2, 3), torch.tensor([1, 0]))], loss=lambda m, b: m(b[0]).mean()
    )
    assert objective.data_fingerprint() == "4674e0720623a0238dfe7af6d21afa74335d0fdc68650abdac947105cb55ee09"


@pytest.mark.parametrize("layout", ["coo", "csr", "nested", "jagged", "complex", "conj"])
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
def test_tensors_of_other_layouts_are_kept_and_told_apart(layout):
    def of(value):
        dense = torch.eye(3) * value
        made = {
            "coo": lambda: dense.to_sparse(),
            "csr": lambda: dense.to_sparse_csr(),
            "nested": lambda: torch.nested.nested_tensor([dense[0], dense[1, :2]]),
            "jagged": lambda: torch.nested.nested_tensor([dense[0], dense[1, :2]], layout=torch.jagged),
            "complex": lambda: torch.complex(dense, dense),
            "conj": lambda: torch.complex(dense, dense).conj(),
        }[layout]()
        return fs.Objective(nn.Linear(3, 1), [{"m": made}], loss=lambda m, _: m.weight.mean()).data_fingerprint()

    assert of(1.0) == of(1.0)
    assert of(1.0) != of(2.0)


def test_sparse_batches_are_cast_and_evaluated(model):
    x = torch.randn(5, 4)
    data = [(x.to_sparse(), torch.arange(5) % 3)]
    objective = fs.Objective(model, data, loss=lambda m, b: F.cross_entropy(torch.sparse.mm(b[0], m.weight.T) + m.bias, b[1]))
    want = float(F.cross_entropy(model(x), data[0][1]).detach())
    assert objective.loss() == pytest.approx(want, rel=1e-6)
    assert objective.cast(torch.float64).loss() == pytest.approx(want)


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.RNN(4, 3), nn.Linear(3, 3)

    def forward(self, packed):
        assert isinstance(packed, PackedSequence)
        return self.head(self.rnn(packed)[1][0])


def test_packed_sequences_are_inputs_and_are_cut_into_sequences():
    torch.manual_seed(0)
    model = Sequences()
    lengths = [3, 5, 2, 4]
    rows, y = [torch.randn(n, 4) for n in lengths], torch.tensor([0, 1, 2, 1])
    packed = pack_sequence(rows, enforce_sorted=False)
    objective = fs.Objective(model, [(packed, y)], criterion=F.cross_entropy)
    want = float(F.cross_entropy(model(packed), y).detach())
    assert objective.loss() == pytest.approx(want, rel=1e-6)
    assert objective.count(objective.batches[0]) == 4
    assert objective.replica(torch.float64).batches[0][0].data.dtype == torch.float64
    found = fs.temperature(objective, batch_size=2, learning_rate=0.1, products=0)
    gradients = []
    for row, label in zip(rows, y, strict=True):
        parts = torch.autograd.grad(F.cross_entropy(model(pack_sequence([row])), label[None]), list(model.parameters()))
        gradients.append(torch.cat([part.reshape(-1) for part in parts]))
    spread = torch.stack(gradients).double().var(0).sum()
    assert found.trace.value == pytest.approx(float(spread), rel=1e-4)


def test_what_cannot_be_opened_is_refused_with_the_remedy(model):
    for held in (threading.Lock(), (n for n in range(3)), threading.local()):
        with pytest.raises(TypeError, match="got .*, which may hold tensors .*register_pytree_node"):
            fs.Objective(model, [{"x": torch.ones(2, 4), "held": held}], loss=lambda m, b: m(b["x"]).mean())


def test_tensors_behind_a_function_are_refused(model):
    hidden = torch.ones(2, 4)
    with pytest.raises(TypeError, match="got dict with tensors that its copy shares; .*register_pytree_node"):
        fs.Objective(model, [{"held": lambda: hidden}], loss=lambda m, b: m(b["held"]()).mean())


def test_functions_and_text_without_tensors_pass(model):
    batch = {"x": torch.ones(2, 4), "y": torch.tensor([0, 1]), "f": len, "g": lambda z: z, "s": ["a", "b"], "n": None}
    objective = fs.Objective(model, [batch], loss=lambda m, b: F.cross_entropy(b["g"](m(b["x"])), b["y"]))
    assert objective.loss() == pytest.approx(float(F.cross_entropy(model(batch["x"]), batch["y"]).detach()), rel=1e-6)
    assert len(tensors_of(objective.batches[0])) == 2


def test_the_memory_of_the_host_is_what_the_system_can_give_without_swapping(monkeypatch):
    device = torch.device("cpu")
    assert 0 < available_memory(device) <= psutil.virtual_memory().total
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=123, free=7))
    assert available_memory(device) == 123
