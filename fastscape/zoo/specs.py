"""Name models, data and losses on a command line: ``zoo:cnn``, ``torchvision:resnet18``, ``hf:folder``, ``file.py:make``."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
        spec: ``zoo:NAME``, ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER`` (a model that transformers saved), ``hf:FILE.json``
            (its configuration, with random weights), ``package.module:factory`` or ``path/file.py:factory``, each with optional
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
    if source == "hf":
        return partial(_transformers, target, kind, name)
    if source == "timm":
        return partial(_timm, target, kind, name)
    module = _library("torchvision.models", target, kind) if source == "torchvision" else _module(source, kind)
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{kind} {target!r}: {source} has no callable {name!r}")
    return found  # type: ignore[no-any-return]


def criterion_of(name: str, kind: str) -> Callable[..., Any]:
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


_EXTRAS = {"torchvision.models": "fastscape-probes[vision]", "transformers": "fastscape-probes[hf]", "timm": "timm"}


def _library(name: str, target: str, kind: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{kind} {target!r} needs {name.partition('.')[0]}: pip install '{_EXTRAS[name]}'") from error


def _timm(target: str, kind: str, name: str, **arguments: Any) -> Any:
    library = _library("timm", target, kind)
    if not library.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, library.list_models(), 3)) or "those of timm.list_models()"
        raise ValueError(f"{kind} must name a model of timm, got {target!r}; there is {near}")
    return library.create_model(name, **{"pretrained": False, **arguments})


def _transformers(target: str, kind: str, name: str, **arguments: Any) -> Any:
    """The model of a folder that transformers saved, or of a configuration alone, with random weights; nothing is fetched or run.

    ``architecture`` among the arguments names the class where the configuration names none, or another.
    """
    library = _library("transformers", target, kind)
    path = Path(name)
    config = path if path.suffix == ".json" else path / "config.json"
    if not config.is_file():
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing" if path.is_dir() else "no such folder"
        raise ValueError(
            f"{kind} must name a folder with config.json and weights, or a configuration, got {target!r}: {held}; download a "
            "model of the hub first, or save yours by model.save_pretrained(folder)"
        )
    settings = library.AutoConfig.from_pretrained(config, local_files_only=True, trust_remote_code=False)
    architecture = arguments.pop("architecture", None) or next(iter(settings.architectures or ()), None)
    found = getattr(library, str(architecture), None)
    if found is None:
        raise ValueError(
            f"{kind} must be of a class of transformers, got {architecture!r} in {str(config)!r}; add "
            "?architecture=GPT2LMHeadModel or the like, or use file.py:make for code of your own"
        )
    if config == path:
        for key, value in arguments.items():
            setattr(settings, key, value)
        return found(settings)
    try:
        return found.from_pretrained(path, config=settings, local_files_only=True, **{"dtype": "auto", **arguments})
    except OSError as error:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
        raise ValueError(
            f"{kind} must name a folder with weights (model.safetensors, or its index and parts), got {target!r} with {held}; "
            f"name {str(config)!r} for random ones"
        ) from error


def loss_arguments(model: str, criterion: Any, loss: Any, output: Any, prefix: str = "") -> dict[str, Any]:
    """What :class:`fastscape.Objective` is told of the loss of a model by its specification; names become functions.

    A model of transformers has its own loss of batches with labels, unless a loss or a part of its output is named.
    """
    if loss is None and output is None and model.startswith("hf:"):
        loss = own_loss
    if loss is not None:
        return {"loss": find(loss, f"{prefix}loss", {}) if isinstance(loss, str) else loss}
    named = criterion or "cross_entropy"
    return {"criterion": criterion_of(named, f"{prefix}criterion") if isinstance(named, str) else named, "output": output}


def own_loss(model: Any, batch: Any) -> Any:
    """The loss that a model of transformers takes of a batch with labels.

    Raises:
        ValueError: a batch without labels, of which it takes none.
    """
    outputs = model(**batch)
    if outputs.loss is None:
        raise ValueError(f"batches must hold labels, got {', '.join(batch)}: {type(model).__name__} takes its loss of them")
    return outputs.loss


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
