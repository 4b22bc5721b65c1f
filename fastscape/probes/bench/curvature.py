"""Quadratic forms and products as units of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import torch

from fastscape._state import exact_arithmetic, plain_arithmetic
from fastscape.curvature.flat import Layout, dot, norm
from fastscape.curvature.forms.quadratic import quadratic_forms
from fastscape.curvature.operator import CurvatureOperator, ggn, hessian
from fastscape.curvature.plain import double_backward
from fastscape.curvature.program import Program
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.directions import Directions
from fastscape.evaluation.trial import memory_for
from fastscape.probes.bench.setting import CLOSE, Ready, Setting, Unit

_STEP = 1e-6  # of the differences of outputs that Gauss-Newton forms are compared with: float64 leaves 1e-9
_CANCELLED = 3e3  # roundings of |v| |Hv| in v'Hv, whose terms cancel: a ResNet-18 leaves 4e-3 of the form in float32


def form_units(setting: Setting) -> Iterator[Unit]:
    """Quadratic forms."""
    words = f"d'Hd of one direction, of {setting.few} in a call"
    cost = 6.0 * setting.few + 60
    yield Unit("quadratic form: exact", words, "form", 12.0 * setting.few, partial(_exact, setting), 1)
    yield Unit("quadratic form: two forwards", f"{words}, set-up included", "form", cost, partial(_two_forwards, setting), 2)


def _exact(setting: Setting) -> Ready:
    evaluator = setting.stack.enter_context(DifferenceEvaluator(setting.objective, memory=setting.memory))
    indices = range(setting.few)

    def run() -> object:
        return evaluator.derivatives(setting.fresh(), indices, [0.0])

    with plain_arithmetic(torch.float64):
        choice = evaluator.choose(setting.directions, [0.0])
        curvature = evaluator.derivatives(setting.directions, indices, [0.0])[1][0]
    if evaluator.handling.frozen:
        raise ValueError(f"decisions of the forward depend on the weights: {', '.join(evaluator.handling.frozen)}")
    words = f"{choice.name}: {choice.reason}"
    return Ready(run, lambda: plain_arithmetic(torch.float64), len(indices), evaluator.base, curvature, remark=words)


def _two_forwards(setting: Setting) -> Ready:
    directions = setting.directions
    if setting.few < setting.count:
        directions = Directions.given(setting.objective, [directions[index] for index in range(setting.few)], scale="none")

    def run() -> object:
        return quadratic_forms(setting.objective, directions, method="forwards")

    found = quadratic_forms(setting.objective, directions, method="forwards")
    size = math.sqrt(float(np.mean(found.curvature**2))) or 1.0
    error = float(np.max(found.error)) if found.error is not None else 0.0
    return Ready(
        run,
        setting.plain,
        items=setting.few,
        loss=found.base,
        values=found.curvature,
        tolerance=max(CLOSE, 3 * error / size),
        remark=found.path.reason,
        dtype=torch.promote_types(setting.dtype, torch.float32),
    )


def product_units(setting: Setting) -> Iterator[Unit]:
    """Products of the Hessian and the Gauss-Newton matrix."""
    block, chosen = _vectors(setting), "path chosen by measuring"
    plain = setting.within(partial(_double_backward, setting))
    held = cache(partial(_operator, setting, hessian))
    yield Unit("Hessian product: torch double backward", "H v of one vector, graph built anew", "form", 20, plain, 1)
    yield Unit("Hessian product: one vector", f"H v, {chosen}", "form", 60, lambda: _product(setting, held(), 1), 1)
    if block > 1:
        words = f"H v of one of {block} vectors at a time, {chosen}"
        yield Unit(f"Hessian product: block of {block}", words, "form", 30.0 * block, lambda: _product(setting, held(), block), 2)
    if setting.objective.criterion is not None:
        yield Unit("GGN product: one vector", f"G v, {chosen}", "gauss-newton", 60, partial(_gauss_newton, setting), 1)


def _vectors(setting: Setting) -> int:
    """Vectors of a block: as many as were asked for and an eighth of the memory holds."""
    limit = memory_for(setting.memory, setting.objective.device) // 8
    return max(1, min(setting.count, limit // (8 * setting.objective.size)))


def _double_backward(setting: Setting) -> Ready:
    layout = Layout(setting.objective.names, [tensor.shape for tensor in setting.objective.base.values()])
    rows = setting.rows(1, setting.dtype)
    vector = [part[0] for part in layout.views(rows)]
    products = double_backward(setting.replica, vector)
    loss, found = products()
    values = np.array([dot(found, vector)])
    absolute = _CANCELLED * torch.finfo(setting.dtype).eps * norm(found) * norm(vector)
    words = "loss, gradient with create_graph=True, gradient of its product with v; in the arithmetic of the others"
    return Ready(products, setting.plain, 1, loss, values, absolute=absolute, remark=words, dtype=setting.dtype)


def _operator(setting: Setting, make: Callable[..., CurvatureOperator]) -> CurvatureOperator:
    operator = make(setting.objective, memory=setting.memory, distributed=False)
    setting.stack.callback(operator.release)
    return operator


def _gauss_newton(setting: Setting) -> Ready:
    ready = _product(setting, _operator(setting, ggn), 1)
    assert ready.values is not None
    try:
        expected = _gauss_newton_form(setting)
    except Exception as error:  # whatever a criterion does twice: the products are symmetric all the same
        ready.values, ready.remark = None, f"{ready.remark}; not compared ({type(error).__name__})"
        return ready
    ready.expected = np.array([expected])
    return ready


def _product(setting: Setting, operator: CurvatureOperator, count: int) -> Ready:
    rows = setting.rows(count, operator.dtype)
    found = operator.rows(rows)
    values = (found.double() * rows.double()).sum(1).cpu().numpy()
    choice = operator.choice
    assert choice is not None
    words = f"{choice.name}: {choice.reason}"
    return Ready(
        lambda: operator.rows(rows),
        operator.session,
        count,
        values=values,
        tolerance=max(CLOSE, 10 * choice.error),
        absolute=float(_CANCELLED * torch.finfo(operator.dtype).eps * (found.norm(dim=1) * rows.norm(dim=1)).max()),
        remark=words,
        peak=choice.peak,
        dtype=operator.dtype,
    )


def _gauss_newton_form(setting: Setting) -> float:
    """The form v'G v of the first direction: the criterion's curvature along a difference of outputs, in float64."""
    with exact_arithmetic(torch.float64):
        program = Program(setting.objective, torch.float64)
        steps = [part[0] for part in program.layout.views(setting.rows(1, torch.float64))]
        total = 0.0
        for batch, weight in enumerate(program.weights):
            moved = [
                program.outputs(batch, [w + sign * _STEP * d for w, d in zip(program.leaves, steps, strict=True)]).detach()
                for sign in (1.0, -1.0)
            ]
            tangent = (moved[0] - moved[1]) / (2 * _STEP)
            outputs = program.outputs(batch).detach().requires_grad_(True)
            with torch.enable_grad():
                slope = torch.autograd.grad(program.criterion(batch)(outputs), outputs, create_graph=True)[0]
                second = torch.autograd.grad((slope * tangent).sum(), outputs, materialize_grads=True)[0]
            total += weight * float((second * tangent).sum())
    return total
