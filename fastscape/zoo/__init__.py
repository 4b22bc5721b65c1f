"""Small models and real data sets that examples, tests and benchmarks share; no downloads."""

from fastscape.zoo.data import cifar10, digits, fashion_mnist, pydoc_text
from fastscape.zoo.models import cnn, mlp, resnet18, tiny_transformer
from fastscape.zoo.train import train

__all__ = ["cifar10", "cnn", "digits", "fashion_mnist", "mlp", "pydoc_text", "resnet18", "tiny_transformer", "train"]
