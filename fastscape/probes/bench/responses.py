"""Even responses as units of a benchmark: by subtraction in two precisions and ways, and by difference propagation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch

from fastscape._checks import counted
from fastscape._state import plain_arithmetic
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.triple import Products
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.losses import DTYPES
from fastscape.evaluation.trial import PathChoice, activation_bytes, memory_for
from fastscape.probes.bench.setting import CLOSE, RADII, Ready, Setting, Unit

_BATCHED = 12.0  # times the loop's operations: what convolutions with weights of their own may take, and two runs
_ROUGH = 0.2  # relative deviation that bfloat16 products may leave
ROUNDINGS = 30.0  # times the rounding noise of a loss


def response_units(setting: Setting) -> Iterator[Unit]:
    """Each way, in order."""
    meaning = f"one direction at one radius, of {setting.few} x {len(RADII)} in a call; directions drawn anew"
    each = 2.0 * len(RADII) * setting.few
    for precision in ("float64", "float32"):
        for path in ("loop", "vmap"):
            cost = (2 if precision == "float64" else 1) * each * (2 if path == "loop" else _BATCHED)
            make = partial(_subtracted, setting, precision, path)
            yield Unit(f"even response: {precision}, {path}", meaning, "response", cost, make, 3 * (path == "vmap"))
    products: dict[str, Products] = {"difference": "float32", "difference-bf16": "bfloat16"}
    for rank, (name, rounded) in enumerate(products.items(), start=1):
        yield Unit(f"even response: {name}", meaning, "response", 6 * each, partial(_propagated, setting, rounded), rank)


def _subtracted(setting: Setting, precision: Literal["float64", "float32"], path: Literal["loop", "vmap"]) -> Ready:
    dtype = DTYPES[precision]
    evaluator = setting.stack.enter_context(
        Evaluator(setting.objective, dtype, method=PathChoice(path, 1, {}, "asked for"), gate=False, memory=setting.memory)
    )
    remark = ""
    if path == "vmap":
        evaluator.choice, remark = _batched(setting, evaluator)
    return _response(setting, evaluator, dtype, remark)


def _batched(setting: Setting, evaluator: Evaluator) -> tuple[PathChoice, str]:
    """Batches of as many directions as fit in memory; raises where one does not."""
    points, width = 2 * len(RADII) + 1, torch.finfo(evaluator.dtype).bits // 8
    with plain_arithmetic(evaluator.dtype):
        each = points * (3 * setting.objective.size * width + activation_bytes(evaluator.replica))
    limit = memory_for(setting.memory, setting.objective.device)
    size = min(setting.few, limit // each)
    if size < 1:
        raise ValueError(f"{points} copies of parameters and activations take {each / 2**20:.3g} MiB, above the memory given")
    return PathChoice("vmap", size, {}, "asked for"), f"{counted(size, 'direction')} at a time"


def _propagated(setting: Setting, products: Products) -> Ready:
    evaluator = DifferenceEvaluator(setting.objective, products=products, memory=setting.memory)
    setting.stack.enter_context(evaluator)
    with plain_arithmetic(torch.float64):
        choice = evaluator.choose(setting.directions, RADII.tolist())
    ready = _response(setting, evaluator, torch.float32, f"{choice.name}: {choice.reason}")
    ready.tolerance = CLOSE if products == "float32" else _ROUGH
    return ready


def _response(setting: Setting, evaluator: Evaluator | DifferenceEvaluator, dtype: torch.dtype, remark: str) -> Ready:
    radii, own = RADII.tolist(), dtype if isinstance(evaluator, Evaluator) else torch.float64
    indices = range(setting.few)

    def run() -> object:
        return evaluator.responses(setting.fresh(), indices, radii)

    with plain_arithmetic(own):
        even, _, base = evaluator.responses(setting.directions, indices, radii)
    return Ready(
        run,
        lambda: plain_arithmetic(own),
        items=even.size,
        loss=float(base[0]),
        values=even,
        absolute=4 * ROUNDINGS * setting.noise(dtype) if isinstance(evaluator, Evaluator) else 0.0,
        remark=remark,
        dtype=own,
    )
