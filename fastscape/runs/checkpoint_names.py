"""Names in a checkpoint beside those of a model: what wrappers put before or into them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping

from torch import Tensor

_PREFIXES = ("module.", "model.", "net.", "base_model.")  # DataParallel, Lightning and torchtitan, own classes, PEFT
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})  # wherever they stand
_ADAPTER = re.compile(r"((?:^|\.)lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.[^.]+(\.weight|(?<!\.weight)$)")
_DEEPEST = 4  # prefixes on one another


def renamed(state: Mapping[str, Tensor], expected: Iterable[str], base: str = "") -> dict[str, Tensor]:
    """A state dict under the names of a model; see :func:`matched`."""
    names = matched(state, expected, base)
    return {names[name]: tensor for name, tensor in state.items()}


def matched(found: Iterable[str], expected: Iterable[str], base: str = "") -> dict[str, str]:
    """Names of a model for those that were saved from a wrapper of it, or of a model that is wrapped itself.

    Of all combinations of prefixes taken off or put before, the one that fits the most names, the shortest first; ``base`` is
    one more, under which a model holds the one that it builds on.
    """
    prefixes = (*_PREFIXES, f"{base}.") if base and f"{base}." not in _PREFIXES else _PREFIXES
    given = tuple(expected)
    wanted = {_bare(name): name for name in given}
    if len(wanted) < len(given):  # as with two adapters, of which a file does not say its own
        wanted = {name: name for name in given}
    saved = tuple(found)
    bare = {_bare(name): name for name in saved}
    if len(bare) < len(saved):  # two names become one: they are no wrapper's
        bare = {name: name for name in saved}
    best, most = {name: name for name in bare}, -1
    pending, seen = deque([(0, best)]), {frozenset(best.values())}
    while pending:
        depth, names = pending.popleft()  # bare name -> name as it is now
        fitting = sum(name in wanted for name in names.values())
        if fitting > most:
            best, most = names, fitting
        if fitting == len(wanted) or depth == _DEEPEST:
            continue
        for following in _others(names, prefixes):
            key = frozenset(following.values())
            if key not in seen and len(key) == len(names):
                seen.add(key)
                pending.append((depth + 1, following))
    return {bare[key]: wanted.get(name, bare[key] if name == key else name) for key, name in best.items()}


def _others(names: Mapping[str, str], prefixes: Iterable[str]) -> Iterable[dict[str, str]]:
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in names.values()):
            yield {key: name.removeprefix(prefix) for key, name in names.items()}
        yield {key: prefix + name for key, name in names.items()}


def _bare(name: str) -> str:
    """A name without the parts that compiling, sharding and checkpointing a module put into it, nor an adapter's own name."""
    name = _ADAPTER.sub(r"\1\2", name)
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
