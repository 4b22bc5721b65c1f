"""Real data without downloads, as lists of batches ``(inputs, targets)``."""

from __future__ import annotations

import gzip
import string
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastscape._checks import one_of

Batches = list[tuple[Tensor, Tensor]]
Split = Literal["train", "test"]
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's dataset-fashion-mnist installs it
ALPHABET = string.printable


def digits(
    split: Split = "train", samples: int | None = None, batch_size: int = 256, size: int = 8, channels: int = 1
) -> Batches:
    """Handwritten digits from scikit-learn: 1797 grey 8x8 images in [0, 1], the last 360 of them the test split.

    Args:
        split: ``"train"`` or ``"test"``.
        samples: how many, from the first; ``None`` for all.
        batch_size: the last batch may be smaller.
        size: images are resized to ``size x size`` (bilinear) where it is not 8.
        channels: 1, or more equal ones for colour models.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("zoo:digits needs scikit-learn: pip install 'fastscape-probes[zoo]'") from error
    bunch = load_digits()
    images = torch.tensor(bunch.images / 16.0, dtype=torch.float32).unsqueeze(1)
    targets = torch.tensor(bunch.target, dtype=torch.int64)
    rows = slice(0, 1437) if _checked(split) == "train" else slice(1437, None)
    images, targets = images[rows][:samples], targets[rows][:samples]
    if size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return _batched(images.repeat(1, channels, 1, 1), targets, batch_size)


def fashion_mnist(
    split: Split = "test", samples: int | None = 1024, batch_size: int = 256, root: str | Path = FASHION_MNIST
) -> Batches:
    """Fashion-MNIST, 28x28 grey images in [0, 1], from idx files such as Debian's package ``dataset-fashion-mnist``."""
    prefix = "train" if _checked(split) == "train" else "t10k"
    images, targets = (Path(root) / f"{prefix}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1"))
    if not images.is_file():
        raise ValueError(f"root must hold {images.name}, got {str(root)!r}; install the Debian package dataset-fashion-mnist")
    pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:samples]
    labels = np.frombuffer(gzip.decompress(targets.read_bytes()), np.uint8, offset=8)[:samples]
    return _batched(torch.tensor(pixels).float() / 255, torch.tensor(labels).long(), batch_size)


def cifar10(root: str | Path, split: Split = "test", samples: int | None = 512, batch_size: int = 128) -> Batches:
    """CIFAR-10 from a local root in torchvision's format, normalised by the usual channel means and deviations."""
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise ImportError("zoo:cifar10 needs torchvision: pip install 'fastscape-probes[vision]'") from error
    try:
        stored = CIFAR10(root=str(root), train=_checked(split) == "train", download=False)
    except RuntimeError as error:
        raise ValueError(f"root must hold CIFAR-10 in torchvision's format, got {str(root)!r} ({error})") from error
    images = torch.tensor(stored.data[:samples]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    return _batched((images - mean.view(3, 1, 1)) / std.view(3, 1, 1), torch.tensor(stored.targets[:samples]), batch_size)


def pydoc_text(split: Split = "train", samples: int | None = 64, batch_size: int = 16, context: int = 64) -> Batches:
    """Next-character prediction on the English text of Python's own help topics, over the 100 printable characters.

    Args:
        split: the last tenth of the text is ``"test"``.
        samples: windows of ``context`` characters, evenly spaced over the split; ``None`` for all that do not overlap.
        batch_size: windows per batch.
        context: characters per window.
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    codes = torch.tensor([max(0, ALPHABET.find(character)) for character in text])
    cut = len(codes) * 9 // 10
    part = codes[:cut] if _checked(split) == "train" else codes[cut:]
    available = (len(part) - 1) // context
    count = available if samples is None else min(samples, available)
    starts = [index * available // count * context for index in range(count)]
    windows = torch.stack([part[start : start + context + 1] for start in starts])
    return _batched(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), batch_size)


def _checked(split: str) -> str:
    one_of("split", split, ("train", "test"))
    return split


def _batched(inputs: Tensor, targets: Tensor, batch_size: int) -> Batches:
    if batch_size < 1 or not len(inputs):
        raise ValueError(f"samples and batch_size must be positive, got {len(inputs)} samples and batch_size={batch_size}")
    return list(zip(torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True))
