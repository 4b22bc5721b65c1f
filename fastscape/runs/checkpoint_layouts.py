"""Folders as trainers leave them: which hold the weights of one model, which several checkpoints, and what else lies there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".ckpt", ".bin"})
OPTIMIZER = ".optimizer.pt"  # ending of a checkpoint's optimizer state, beside it
INDEX = ".index.json"  # of weights in several files
WEIGHTS = (  # of one model in a folder of its own, the safest to read first
    "model.safetensors",
    "adapter_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "adapter_model.bin",
    "diffusion_pytorch_model.bin",
    "pytorch_model_fsdp.bin",
)
_STATE = re.compile(r"(optimizer|scheduler|scaler|sampler|dl_state_dict|rng_state|training_args)(_\d+)?\.(pt|pth|bin)")
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.(safetensors|bin)")
_STEPS = ("step", "iteration", "iter", "checkpoint", "ckpt", "epoch")  # Lightning: epoch=3-step=400
_DISTRIBUTED = ".metadata"  # of torch.distributed.checkpoint, also torchtitan's
_MOST = 64 << 20  # bytes of an index
_SHOWN = 5


def is_checkpoint(path: Path) -> bool:
    """Whether a file's name is that of weights: a known suffix, and no state of an optimizer, a scheduler or a generator."""
    return path.suffix in SUFFIXES and not path.name.endswith(OPTIMIZER) and not _STATE.fullmatch(path.name)


def check_weights(path: Path, argument: str) -> None:
    """Refuse a file that trainers write beside the weights.

    Raises:
        ValueError: such a file.
    """
    if _STATE.fullmatch(path.name):
        raise ValueError(
            f"{argument} must hold weights, got {str(path)!r}, which trainers write beside them; name the folder, or its file of "
            f"weights, such as {WEIGHTS[0]}"
        )


def expanded(path: Path, argument: str) -> list[Path]:
    """Checkpoints that a path stands for: itself, or those in a folder in natural order.

    A folder with the weights of one model (``model.safetensors``, or the index of several files) is one checkpoint; one with
    such folders (``checkpoint-500``, ``checkpoint-1000``) is one for each of them, and for weights of its own where these are of
    a later step; in any other, every file of weights is one.

    Raises:
        ValueError: a folder without any, or in a layout that must be converted; lists what was found.
    """
    if not path.is_dir():
        return [path]
    _check_layout(path, argument)
    inside = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    folders = sorted((entry for entry in inside if entry.is_dir() and weights_of(entry) is not None), key=natural)
    own = weights_of(path)
    if folders:
        last = step_of(folders[-1])
        later = own is not None and (step_of(path) is None or last is None or (step_of(path) or 0) > last)
        return [*folders, path] if later else folders
    if own is not None:
        return [path]
    files = [entry for entry in inside if entry.is_file() and is_checkpoint(entry)]
    if not files:
        for entry in sorted(entry for entry in inside if entry.is_dir()):
            _check_layout(entry, argument)
        names = ", ".join(sorted(entry.name + "/" * entry.is_dir() for entry in inside)[:_SHOWN]) or "nothing"
        raise ValueError(
            f"{argument} must name a file or a directory of checkpoints ({', '.join(sorted(SUFFIXES))}; {WEIGHTS[0]} in it or in "
            f"its folders), got {str(path)!r} without any: it holds {names}"
        )
    return sorted(files, key=natural)


def is_adapter(path: Path) -> bool:
    """Whether a checkpoint holds the weights of adapters alone, in PEFT's layout."""
    found = weights_of(path) if path.is_dir() else path
    return found is not None and found.name.startswith("adapter_model.")


def weights_of(folder: Path) -> Path | None:
    """The file of weights, or their index, of a folder that is one checkpoint; ``None`` where it is not."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    index = next((folder / f"{name}{INDEX}" for name in WEIGHTS if (folder / f"{name}{INDEX}").is_file()), None)
    if found is None and index is None:
        return None
    ours = {*WEIGHTS}
    others = [
        file for file in folder.iterdir() if is_checkpoint(file) and file.name not in ours and not _SHARD.fullmatch(file.name)
    ]
    return None if others else found or index


def files_of(path: Path) -> tuple[Path, ...]:
    """All files that a checkpoint's weights are in: of a folder, an index or a file.

    Raises:
        ValueError: a folder or an index without weights, or a part that is missing or lies elsewhere.
    """
    if path.is_dir():
        found = weights_of(path)
        if found is None:
            raise ValueError(f"checkpoint {path} must hold {WEIGHTS[0]} or the like, got a folder without")
        path = found
    if not path.name.endswith(INDEX):
        return (path,)
    parts = _index(path)
    for name in parts:
        if Path(name).name != name or not is_checkpoint(Path(name)):
            raise ValueError(f"checkpoint {path}: parts must be files of weights beside the index, got {name!r}")
        if not (path.parent / name).is_file():
            raise ValueError(f"checkpoint {path} must have all its parts beside it, but {name} is missing; download it again")
    return tuple(path.parent / name for name in parts)


def _index(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _MOST else ""
        names = set(json.loads(text)["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"checkpoint {path} must be an index with a weight_map of names to files, got {type(error).__name__}: {error}"
        ) from error
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"checkpoint {path} must be an index with a weight_map of names to files, got one that names none")
    return sorted(names)


def _check_layout(folder: Path, argument: str) -> None:
    """Refuse layouts of several processes, which have to be converted, with the command that does."""
    if (folder / _DISTRIBUTED).is_file():
        raise ValueError(
            f"{argument} must hold whole tensors, got {str(folder)!r} of torch.distributed.checkpoint; convert it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder.name}.pt"
        )
    if any(folder.glob("*_model_states.pt")):
        raise ValueError(
            f"{argument} must hold whole tensors, got {str(folder)!r} of DeepSpeed; convert it with the zero_to_fp32.py that "
            "DeepSpeed put beside it"
        )


def step_of(path: Path) -> int | None:
    """Step of a checkpoint: that of ``trainer_state.json`` in a folder, or the number that its name has for one."""
    own = path if path.is_dir() else path.parent if _named_by_folder(path) else None
    if own is not None and (step := _trained(own / "trainer_state.json")) is not None:
        return step
    stem = (own or path).name if own is not None else path.stem
    if stem.isdigit():
        return int(stem)
    for word in _STEPS:
        found = re.search(rf"{word}[-_=]?(\d+)", stem, re.IGNORECASE)
        if found:
            return int(found[1])
    return None


def label_of(path: Path) -> str:
    """Name of a checkpoint: of its folder where all folders name their weights alike, else of the file."""
    if path.is_dir():
        return path.resolve().name
    return path.resolve().parent.name if _named_by_folder(path) else path.stem


def _named_by_folder(path: Path) -> bool:
    return path.name.removesuffix(INDEX) in WEIGHTS


def _trained(path: Path) -> int | None:
    """The step in a trainer's own record; ``None`` without a readable one."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and path.stat().st_size < _MOST else None
    except (OSError, ValueError, RecursionError):
        return None
    step = found.get("global_step") if isinstance(found, Mapping) else None
    return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that orders ``step2`` before ``step10``."""
    parts = "".join(character if character.isdigit() else f" {character} " for character in path.stem).split()
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
