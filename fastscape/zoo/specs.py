"""Name models, data and losses on a command line: ``zoo:cnn``, ``torchvision:resnet18?num_classes=10``, ``file.py:make``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastscape._state import preserved_rng
from fastscape.zoo import data, models

MODELS: dict[str, Callable[..., Any]] = {
    "mlp": models.mlp,
    "cnn": models.cnn,
    "resnet18": models.resnet18,
    "tiny_transformer": models.tiny_transformer,
}
DATA: dict[str, Callable[..., Any]] = {
    "digits": data.digits,
    "fashion-mnist": data.fashion_mnist,
    "cifar10": data.cifar10,
    "pydoc-text": data.pydoc_text,
}

CRITERIA = {
    "cross_entropy": "cross_entropy",
    "mse": "mse_loss",
    "bce": "binary_cross_entropy_with_logits",
}  # in torch.nn.functional


def build(spec: str, kind: str, zoo: dict[str, Callable[..., Any]], *, seed: int = 0) -> Any:
    """Call the factory that a specification names.

    Args:
        spec: ``zoo:NAME``, ``torchvision:NAME``, ``package.module:factory`` or ``path/file.py:factory``, each with optional
            arguments as ``?name=value&name=value`` (Python literals, else strings).
        kind: the argument's name, for messages.
        zoo: what ``zoo:`` offers.
        seed: of torch's generator while the factory runs, so that random weights are the same every time.

    Raises:
        ValueError: unknown form or name, a factory that is missing, or arguments it does not take.
    """
    target, _, query = spec.partition("?")
    arguments = _arguments(spec, query, kind)
    factory = find(target, kind, zoo)
    with preserved_rng(), _told(f"{kind} {spec!r}"):
        torch.manual_seed(seed)
        return factory(**arguments)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """A block of the user's code; what it raises, leaving the process included, becomes a ValueError that names it.

    Raises:
        ValueError: what was raised, with the file and line.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(place.filename).name}, line {place.lineno})" if not isinstance(error, SyntaxError) else ""
        words = str(error) or "no message"
        raise ValueError(
            f"{what} must run, got {type(error).__name__}: {words}{where}; call it in Python by itself to see why"
        ) from error


def find(target: str, kind: str, zoo: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The callable behind ``source:name``."""
    source, colon, name = target.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(f"{kind} must look like zoo:NAME, package.module:factory or file.py:factory, got {target!r}")
    if source == "zoo":
        if name not in zoo:
            raise ValueError(f"{kind} must be one of {', '.join(f'zoo:{known}' for known in zoo)}, got {target!r}")
        return zoo[name]
    module = _torchvision(target, kind) if source == "torchvision" else _module(source, kind)
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{kind} {target!r}: {source} has no callable {name!r}")
    return found  # type: ignore[no-any-return]


def criterion(name: str, kind: str) -> Callable[..., Any]:
    """The function of (outputs, targets) that a name of :data:`CRITERIA` or ``module:function`` stands for."""
    if name in CRITERIA:
        found: Callable[..., Any] = getattr(torch.nn.functional, CRITERIA[name])
        return found
    if ":" not in name:
        raise ValueError(f"{kind} must be one of {', '.join(CRITERIA)} or module:function, got {name!r}")
    return find(name, kind, {})


def _arguments(spec: str, query: str, kind: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{kind} {spec!r}: arguments must look like name=value, got {pair!r}")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments


def _torchvision(target: str, kind: str) -> Any:
    try:
        return importlib.import_module("torchvision.models")
    except ImportError as error:
        raise ValueError(f"{kind} {target!r} needs torchvision: pip install 'fastscape-probes[vision]'") from error


def _module(source: str, kind: str) -> Any:
    """Import a module by name (the working directory included) or a Python file by path."""
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"{kind} must name an existing file, got {source!r}")
        specification = importlib.util.spec_from_file_location(path.stem, path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules.setdefault(path.stem, module)
        with _told(f"{kind} {source!r}"):
            specification.loader.exec_module(module)
        return module
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with _told(f"{kind} {source!r}"):
            return importlib.import_module(source)
    except ValueError as error:
        if isinstance(error.__cause__, ImportError):
            raise ValueError(f"{kind} must name an importable module, got {source!r} ({error.__cause__})") from error.__cause__
        raise
