"""Small models that examples, tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fastscape._checks import one_of

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(
    inputs: int = 64,
    hidden: Sequence[int] = (128, 64),
    classes: int = 10,
    activation: Literal["relu", "tanh", "gelu"] = "relu",
) -> nn.Sequential:
    """Fully connected classifier of flattened inputs; the default fits the digits (``inputs=784`` for Fashion-MNIST)."""
    one_of("activation", activation, tuple(_ACTIVATIONS))
    layers: list[nn.Module] = [nn.Flatten()]
    width = inputs
    for size in hidden:
        layers += [nn.Linear(width, size), _ACTIVATIONS[activation]()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, classes))


def cnn(channels: int = 1, classes: int = 10, width: int = 8) -> nn.Sequential:
    """Two convolution + batch-norm + ReLU blocks, max-pooling and a linear head; any image size from 4x4."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


def resnet18(classes: int = 10, channels: int = 3, width: int = 64) -> nn.Module:
    """Torchvision's ResNet-18 with the CIFAR stem: 3x3 first convolution of stride 1 and no max-pool (11.2 M parameters).

    Args:
        classes: outputs.
        channels: of the images.
        width: channels of the first stage, which each later stage doubles; 64 is ResNet-18, 8 has 176 k parameters.
    """
    try:
        from torchvision.models.resnet import BasicBlock, ResNet
    except ImportError as error:
        raise ImportError("zoo:resnet18 needs torchvision: pip install 'fastscape-probes[vision]'") from error
    model: nn.Module = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    model.conv1 = nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    if width != 64:
        model.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage in range(4):
            planes = width << stage
            setattr(model, f"layer{stage + 1}", _stage(BasicBlock, before, planes, stride=1 if stage == 0 else 2))
            before = planes
        model.fc = nn.Linear(before, classes)
        for module in model.modules():  # torchvision's start
            if isinstance(module, nn.Conv2d) and module is not model.conv1:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _stage(block: Callable[..., nn.Module], before: int, planes: int, *, stride: int) -> nn.Sequential:
    """Two basic blocks, the first with a projection where the shape changes."""
    shortcut = None
    if stride != 1 or before != planes:
        shortcut = nn.Sequential(nn.Conv2d(before, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes))
    return nn.Sequential(block(before, planes, stride, shortcut), block(planes, planes))


class TinyTransformer(nn.Module):
    """Causal character model: embedding, pre-norm encoder layers (GELU), tied to nothing; logits ``[B, vocabulary, T]``.

    The class axis is second, where ``F.cross_entropy`` wants it for targets ``[B, T]``.
    """

    def __init__(self, vocabulary: int = 100, width: int = 64, layers: int = 2, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[B, vocabulary, T]`` of the next character for tokens ``[B, T]``."""
        length = tokens.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        hidden = self.encoder(self.embedding(tokens) + self.position[:length], mask=future)
        logits: Tensor = self.head(hidden)
        return logits.movedim(-1, 1)


def tiny_transformer(
    vocabulary: int = 100, width: int = 64, layers: int = 2, heads: int = 4, context: int = 64
) -> TinyTransformer:
    """Two-layer causal transformer encoder for ``pydoc-text`` (about 116 k parameters)."""
    return TinyTransformer(vocabulary, width, layers, heads, context)
