"""Networks on real data, trained for a few steps, and their Hessians in float64."""

from __future__ import annotations

import copy
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo

Batches = list[tuple[Tensor, Tensor]]
VOCABULARY, CONTEXT = 1024, 64


class Attention(nn.Module):
    """Causal self-attention in plain operations, which every tool can differentiate twice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("future", torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        query, key, value = self.qkv(hidden).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5
        weights = scores.masked_fill(self.future[:length, :length], -torch.inf).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm attention and a GELU network, each with its residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.second = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.first(hidden))
        return hidden + self.network(self.second(hidden))


class GPT(nn.Module):
    """Four blocks of width 128 over 1024 words, head not tied: 1.06 M parameters; logits ``[B, vocabulary, T]``."""

    def __init__(self, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens) + self.position(torch.arange(tokens.shape[-1], device=tokens.device))
        return self.head(self.norm(self.blocks(hidden))).movedim(-1, 1)


def words(samples: int, batch_size: int) -> Batches:
    """Next word of Python's help topics: the 1023 most frequent words, spaces and signs, and one code for the rest."""
    from pydoc_data.topics import topics

    pieces = re.findall(r"\w+|\s+|[^\w\s]", "\n".join(topics[name] for name in sorted(topics)))
    codes = {piece: code for code, (piece, _) in enumerate(Counter(pieces).most_common(VOCABULARY - 1), 1)}
    text = torch.tensor([codes.get(piece, 0) for piece in pieces])
    starts = torch.linspace(0, len(text) - CONTEXT - 1, samples).long()
    windows = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
    inputs, targets = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
    return list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))


def colour_digits(samples: int, batch_size: int) -> Batches:
    return zoo.digits(samples=samples, batch_size=batch_size, size=32, channels=3)


@dataclass(frozen=True)
class Recipe:
    """A network, its training data, the one batch that its Hessian is of, and steps, rate and minibatch of Adam."""

    build: Callable[[], nn.Module]
    data: Callable[[], Batches]
    probed: Callable[[], Batches]
    steps: int
    rate: float
    minibatch: int


RECIPES = {
    "mlp": Recipe(zoo.mlp, zoo.digits, lambda: zoo.digits(samples=128), 200, 1e-2, 64),
    "wide-mlp": Recipe(
        lambda: zoo.mlp(hidden=(512, 256), activation="gelu"), zoo.digits, lambda: zoo.digits(samples=128), 100, 3e-3, 64
    ),
    "gpt": Recipe(GPT, lambda: words(256, 256), lambda: words(4, 4), 60, 1e-3, 16),
    "resnet18": Recipe(zoo.resnet18, lambda: colour_digits(128, 128), lambda: colour_digits(8, 8), 12, 1e-3, 16),
}
LABELS = {
    "mlp": "MLP 17 k, batch 128",
    "wide-mlp": "MLP 167 k, batch 128",
    "gpt": "GPT 1.06 M, 4 x 64 words",
    "resnet18": "ResNet-18 11.2 M, 8 images",
}


def train(name: str, folder: Path) -> None:
    """Leave the trained weights of a network in ``folder``; the same every time."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    model = recipe.build()
    with tempfile.TemporaryDirectory() as scratch:
        zoo.train(
            model,
            recipe.data(),
            scratch,
            steps=recipe.steps,
            checkpoints=2,
            learning_rate=recipe.rate,
            batch_size=recipe.minibatch,
        )
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / f"{name}.pt")


class Problem:
    """A network in evaluation mode and one batch.

    Attributes:
        model: in float32.
        batch: inputs and targets.
        parameters: the model's, in order; the flat vector is their concatenation.
        size: D, their number of elements.
    """

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        self.model, (self.batch,) = model.eval(), batches
        self.criterion = nn.CrossEntropyLoss()
        self.parameters = list(model.parameters())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.size = sum(self.sizes)

    @classmethod
    def load(cls, name: str, folder: str | Path) -> Problem:
        """A network that :func:`train` left in ``folder``."""
        model = RECIPES[name].build()
        model.load_state_dict(torch.load(Path(folder) / f"{name}.pt"))
        return cls(model, RECIPES[name].probed())

    @classmethod
    def tiny(cls) -> Problem:
        """610 parameters, to have everything imported and called once before a clock runs."""
        torch.manual_seed(0)
        return cls(zoo.mlp(hidden=(8,), activation="tanh"), zoo.digits(samples=32))

    def loss(self) -> Tensor:
        return self.criterion(self.model(self.batch[0]), self.batch[1])

    def gradient(self) -> tuple[Tensor, ...]:
        """Unit of every cost."""
        return torch.autograd.grad(self.loss(), self.parameters)

    def objective(self) -> fs.Objective:
        found = fs.Objective(self.model, [self.batch], criterion=F.cross_entropy)
        assert found.names == tuple(name for name, _ in self.model.named_parameters())
        return found

    def directions(self, count: int) -> fs.Directions:
        """Rademacher vectors as fastscape makes them, ones and minus ones."""
        return fs.Directions(self.objective(), count, distribution="rademacher", normalize="none", scale="none")

    def probes(self, count: int) -> tuple[fs.Directions, Tensor]:
        """Rademacher vectors, as fastscape makes them and as columns ``[D, K]`` of ones and minus ones."""
        directions = self.directions(count)
        rows = directions.block(range(count), torch.float32)
        return directions, torch.cat([row.reshape(count, -1) for row in rows], dim=1).T

    def tensors(self, vector: Tensor) -> list[Tensor]:
        """A flat vector ``[D]`` as views in the parameters' shapes."""
        return [part.view_as(p) for part, p in zip(vector.split(self.sizes), self.parameters, strict=True)]

    def in_double(self) -> Problem:
        """The same weights and data in float64."""
        inputs, targets = self.batch
        model = copy.deepcopy(self.model).double()
        return Problem(model, [(inputs.double() if inputs.is_floating_point() else inputs, targets)])


class Truth:
    """Products with the Hessian in float64, by reverse over reverse with the gradient's graph kept."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem.in_double()
        self.size = problem.size
        self._gradient = torch.autograd.grad(self.problem.loss(), self.problem.parameters, create_graph=True)

    def product(self, vector: Tensor) -> Tensor:
        """``H v`` of a flat vector ``[D]`` of any dtype, in float64."""
        parts = self.problem.tensors(vector.double())
        rows = torch.autograd.grad(self._gradient, self.problem.parameters, parts, retain_graph=True)
        return torch.cat([row.reshape(-1) for row in rows])

    def products(self, vectors: Tensor) -> Tensor:
        """``H V`` for columns ``[D, K]``."""
        return torch.stack([self.product(column) for column in vectors.T], dim=1)


def signs(size: int, count: int, seed: int = 0) -> Tensor:
    """Rademacher vectors, columns ``[D, K]`` whose transpose is contiguous."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, (count, size), generator=generator).float() * 2 - 1).T
