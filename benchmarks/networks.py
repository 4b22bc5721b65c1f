"""The networks that the measurements of difference propagation share: small, on real data, trained for seconds."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Network:
    """A network, its data and how it is trained.

    Attributes:
        build: the model.
        data: to train on.
        probed: batches of the objective.
        steps: of Adam.
        rate: its learning rate.
        minibatch: its samples a step.
        directions: that a measurement of errors takes.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], Batches]
    probed: Callable[[], Batches]
    steps: int
    rate: float = 1e-2
    minibatch: int = 64
    directions: int = 8


def vit() -> nn.Module:
    """Torchvision's vision transformer for 32 x 32 images: 65 tokens, 4 layers of width 128, GELU; a head that is not zero."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, 4, 4, 128, 256, num_classes=10)
    nn.init.normal_(model.heads[-1].weight, std=0.05)
    return model


def colour_digits(samples: int) -> Batches:
    """Digits enlarged to 32 x 32 in three equal channels, one batch."""
    return zoo.digits(samples=samples, batch_size=samples, size=32, channels=3)


NETWORKS = {
    "mlp, relu": Network(zoo.mlp, zoo.digits, lambda: zoo.digits(samples=128), 200),
    "mlp, gelu": Network(lambda: zoo.mlp(activation="gelu"), zoo.digits, lambda: zoo.digits(samples=128), 200),
    "wide mlp, gelu": Network(
        lambda: zoo.mlp(hidden=(512, 256), activation="gelu"), zoo.digits, lambda: zoo.digits(samples=128), 100, 3e-3
    ),
    "tiny transformer": Network(
        zoo.tiny_transformer,
        lambda: zoo.pydoc_text(samples=256),
        lambda: zoo.pydoc_text(samples=8, batch_size=8),
        40,
        3e-3,
        minibatch=16,
    ),
    "vision transformer": Network(vit, lambda: colour_digits(256), lambda: colour_digits(8), 30, 1e-3, minibatch=16),
    "ResNet-18": Network(
        zoo.resnet18, lambda: colour_digits(128), lambda: colour_digits(8), 12, 1e-3, minibatch=16, directions=4
    ),
}
UNTRAINED = {  # for times alone
    "mlp, width 1024": (
        lambda: zoo.mlp(784, (1024, 1024)),
        lambda: [(torch.rand(128, 784, generator=_generator()), torch.randint(10, (128,), generator=_generator()))],
    ),
}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@functools.cache
def trained(name: str) -> nn.Module:
    """A network after its few steps of Adam; the same every time."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.build()
    with tempfile.TemporaryDirectory() as folder:
        zoo.train(
            model,
            network.data(),
            folder,
            steps=network.steps,
            checkpoints=2,
            learning_rate=network.rate,
            batch_size=network.minibatch,
        )
    return model.eval()


def objective(name: str, criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy) -> fs.Objective:
    """The objective of a network by name; untrained where its speed alone is of interest."""
    if name in NETWORKS:
        return fs.Objective(copy.deepcopy(trained(name)), NETWORKS[name].probed(), criterion=criterion)
    return untrained(name)


def untrained(name: str) -> fs.Objective:
    """The objective of a network with its first weights."""
    build, load = (NETWORKS[name].build, NETWORKS[name].probed) if name in NETWORKS else UNTRAINED[name]
    torch.manual_seed(0)
    return fs.Objective(build(), load(), criterion=F.cross_entropy)
