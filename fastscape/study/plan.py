"""Plan of a study: architectures, data, optimizer, and how much of everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastscape import zoo
from fastscape.zoo.data import FASHION_MNIST, Batches


@dataclass(frozen=True)
class Architecture:
    """One network with its data and its training by SGD with momentum.

    Attributes:
        name: as tables call it.
        words: of network and data, for the page.
        build: makes the network; torch's generator is seeded before.
        train, test: make the batches; minibatches are drawn from all of ``train``.
        probed: make the batches that probes evaluate, fixed for all runs; a part of ``train``.
        steps, batch_size, learning_rate, momentum: of SGD.
    """

    name: str
    words: str
    build: Callable[[], nn.Module]
    train: Callable[[], Batches]
    test: Callable[[], Batches]
    probed: Callable[[], Batches]
    steps: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9

    def optimizer(self) -> Callable[..., torch.optim.Optimizer]:
        """Makes the optimizer of parameters."""
        return partial(torch.optim.SGD, lr=self.learning_rate, momentum=self.momentum)

    @property
    def critical(self) -> float:
        """Curvature at which SGD with momentum stops contracting, 2 (1 + momentum) / learning rate."""
        return 2 * (1 + self.momentum) / self.learning_rate

    @property
    def sgd(self) -> str:
        """The optimizer in words."""
        return f"SGD, learning rate {self.learning_rate:g}, momentum {self.momentum:g}, batches of {self.batch_size}"


@dataclass(frozen=True)
class Plan:
    """A whole study.

    Attributes:
        name: ``"quick"`` or ``"full"``, on the page.
        architectures: what is compared.
        seeds: runs of each, with seeds 0, 1, ...: initial weights and order of the data.
        early: fraction of training at which the early signature is taken.
        share: of the training time that the tracker may add.
        seconds: that the probes of one checkpoint may take.
        plane: points along each axis of the 2D slice.
        lines, line_points: of the 1D slices: random directions, and points along each.
        radius: of slices, relative to the weights.
        epsilon: of the normalised sharpness.
        points: checkpoints along training.
        norms: spectral norms along training behind the optimisation difficulty O(w0).
        k: eigenvalues.
    """

    name: str
    architectures: tuple[Architecture, ...]
    seeds: int
    early: float = 0.1
    share: float = 0.5
    seconds: float = 8.0
    plane: int = 21
    lines: int = 6
    line_points: int = 21
    radius: float = 0.25
    epsilon: float = 1e-2
    points: int = 10
    norms: int = 10
    k: int = 5

    def words(self) -> dict[str, Any]:
        """Everything that tells one study from another, as JSON data."""
        return {
            "networks": {each.name: each.words for each in self.architectures},
            "optimizers": {each.name: each.sgd for each in self.architectures},
            "steps": {each.name: each.steps for each in self.architectures},
            "batch norm": "statistics of each batch, as in training; running ones beside them",
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name not in ("architectures", "name")
            },
        }

    def only(self, names: tuple[str, ...]) -> Plan:
        """The plan with the architectures of these names (as :func:`names` gives them), in the plan's order."""
        return dataclasses.replace(self, architectures=tuple(each for each in self.architectures if slug(each) in names))


def slug(architecture: Architecture) -> str:
    """Name for files and options: ``tiny-transformer``."""
    return architecture.name.lower().replace(" ", "-")


def quick(seeds: int = 3) -> Plan:
    """Minutes on two cores: digits and Python's own help text, a ResNet-18 of an eighth of the width."""
    text = partial(zoo.pydoc_text, context=32)
    digits = "scikit-learn digits, 8x8"
    return Plan(
        "quick",
        (
            Architecture(
                "MLP",
                f"64-128-64-10, ReLU; {digits}",
                zoo.mlp,
                zoo.digits,
                partial(zoo.digits, "test"),
                partial(zoo.digits, samples=512),
                steps=500,
                batch_size=64,
                learning_rate=0.05,
            ),
            Architecture(
                "ResNet-18",
                f"CIFAR stem, widths 8-16-32-64; {digits}",
                partial(zoo.resnet18, channels=1, width=8),
                zoo.digits,
                partial(zoo.digits, "test"),
                partial(zoo.digits, samples=128, batch_size=64),  # as in training, whose statistics they stand for
                steps=250,
                batch_size=64,
                learning_rate=0.05,
            ),
            Architecture(
                "Tiny Transformer",
                "2 layers, width 32, characters of Python's help text",
                partial(zoo.tiny_transformer, width=32, context=32),
                partial(text, samples=512),
                partial(text, "test", samples=128),
                partial(text, samples=32, batch_size=32),
                steps=600,
                batch_size=32,
                learning_rate=0.1,
            ),
        ),
        seeds,
    )


def full(seeds: int = 5, root: str | Path = FASHION_MNIST) -> Plan:
    """Hours: the widths of the literature, on Fashion-MNIST where its files are, else on digits of 16x16."""
    present = (Path(root) / "train-images-idx3-ubyte.gz").is_file()
    if present:
        images, size, words = partial(zoo.fashion_mnist, root=root), 28, "Fashion-MNIST, 28x28"
    else:
        images, size, words = partial(zoo.digits, size=16), 16, "scikit-learn digits, 16x16 (Fashion-MNIST is not there)"
    train, test = partial(images, "train", samples=None), partial(images, "test", samples=None)
    return Plan(
        "full",
        (
            Architecture(
                "MLP",
                f"{size * size}-128-10, ReLU; {words}",
                partial(zoo.mlp, inputs=size * size, hidden=(128,)),
                train,
                test,
                partial(images, "train", samples=2048),
                steps=3000,
                batch_size=128,
                learning_rate=0.05,
            ),
            Architecture(
                "ResNet-18",
                f"CIFAR stem, 11.2 M parameters; {words}",
                partial(zoo.resnet18, channels=1),
                train,
                test,
                partial(images, "train", samples=512, batch_size=128),
                steps=1500,
                batch_size=128,
                learning_rate=0.05,
            ),
            Architecture(
                "Tiny Transformer",
                "2 layers, width 64, characters of Python's help text",
                zoo.tiny_transformer,
                partial(zoo.pydoc_text, samples=None),
                partial(zoo.pydoc_text, "test", samples=None),
                partial(zoo.pydoc_text, samples=256, batch_size=64),
                steps=5000,
                batch_size=32,
                learning_rate=0.1,
            ),
        ),
        seeds,
        share=0.2,
        seconds=300.0,
        plane=41,
        lines=16,
        line_points=41,
        points=20,
        norms=40,
        k=10,
    )
