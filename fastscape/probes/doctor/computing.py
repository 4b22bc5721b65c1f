"""What the doctor looks at in how a loss is computed: gradient, arithmetic, rounding, memory, ways to differentiate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastscape._checks import counted, first_line
from fastscape._state import exact_arithmetic, preserved_rng
from fastscape.curvature.choice import NoPathError
from fastscape.curvature.flat import Layout, norm
from fastscape.curvature.forms.quadratic import quadratic_forms
from fastscape.curvature.operator import hessian
from fastscape.curvature.plain import double_backward
from fastscape.curvature.soundness import AsymmetricProductError
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import arithmetic
from fastscape.evaluation.determinism import NarrowLossError, unperturbed_loss
from fastscape.evaluation.footprint import footprint
from fastscape.evaluation.noise import SIGNAL_TO_NOISE, rounding
from fastscape.evaluation.streaming import streamed_bytes
from fastscape.evaluation.trial import activation_bytes
from fastscape.objective.batches import available_memory
from fastscape.objective.examination import whole
from fastscape.objective.objective import Objective
from fastscape.probes.doctor.contents import HALF, few
from fastscape.probes.doctor.result import Finding
from fastscape.response.operators import operators

_WRONG = 1e-2  # relative difference of a double backward from the Hessian product
_RADIUS = 1e-3  # relative to ||w||, of the response that is compared with subtraction
_TYPICAL = 4  # directions whose curvature tells the size of responses
_COPIES = 6  # of parameters and activations: what a Hessian product with its graph holds


def _gradient(objective: Objective) -> Finding:
    gradient = objective.gradient()
    bad = [name for name, part in gradient.items() if not bool(part.isfinite().all())]
    if bad:
        remedy = "look for square roots, norms and logarithms at zero; spectra and sharpness need the gradient"
        return Finding("gradient", "error", f"NaN or inf at {few(bad)}", remedy)
    unused = [name for name, part in gradient.items() if not bool(part.any())]
    size = norm(list(gradient.values()))
    if unused and len(unused) < len(gradient):
        words = f"||g|| = {size:.3g}; zero at {few(unused)}"
        remedy = "params= without them if the loss does not use them: they only add directions in which nothing changes"
        return Finding("gradient", "warning", words, remedy)
    if unused:
        return Finding("gradient", "warning", "zero at every parameter", "does the loss use the model that it is given?")
    return Finding("gradient", "ok", f"||g|| = {size:.3g}, finite")


def _arithmetic(objective: Objective) -> Finding:
    """Number formats of the loss, also in float64 probes and difference propagation."""
    name, found = "arithmetic of the loss", arithmetic(objective, objective.dtype)
    if found.plain:
        return Finding(name, "ok", f"{found.words} throughout")
    if found.outside is not None:
        return Finding(name, "warning", found.words, "enter the autocast in the model or in loss= to have it measured")
    wide = arithmetic(objective, torch.float64)
    words = f"{found.words}; with precision='float64': {wide.words}; with 'difference': {wide.difference}"
    remedy = "precision= says which function is measured; the results name it"
    return Finding(name, "warning", words, remedy)


def _rounding(objective: Objective) -> Finding:
    """Rounding of a loss, and the radius from which on subtraction resolves responses."""
    name = str(objective.dtype)[6:]
    with exact_arithmetic(objective.dtype):
        noise = rounding(objective.replica(objective.dtype))
    words = f"at most about {noise:.1e} in a {name} loss"
    try:
        forms = quadratic_forms(objective, Directions(objective, _TYPICAL))
    except (ValueError, RuntimeError) as error:
        return Finding("rounding", "ok", f"{words}; from which radius it matters is not known ({first_line(error)[:80]})")
    size = math.sqrt(float((forms.curvature**2).mean()))
    if not (math.isfinite(size) and size > 0):
        return Finding("rounding", "ok", f"{words}; the loss has no curvature along random directions to compare it with")
    unit = torch.finfo(objective.dtype).eps
    radii = {
        kind: math.sqrt(SIGNAL_TO_NOISE * noise * torch.finfo(dtype).eps / unit / size)
        for kind, dtype in (("float32", torch.float32), ("float64", torch.float64))
    }
    told = ", ".join(f"{kind} from {radius:.0e} ||w||" for kind, radius in radii.items())
    return Finding("rounding", "ok", f"{words}; subtraction resolves even responses in {told} on, difference propagation any")


def _memory(objective: Objective) -> Finding:
    dtype = _widest(objective)
    with exact_arithmetic(dtype):
        activations = activation_bytes(objective.replica(dtype)) * 8 // torch.finfo(dtype).bits * 8
    copy, free = 8 * objective.size, available_memory(objective.device)
    words = (
        f"{copy / 2**20:.3g} MiB a copy of the parameters in float64, up to {activations / 2**20:.3g} MiB of activations, "
        f"{free / 2**20:.3g} MiB available{_peaks(objective, dtype)}"
    )
    if _COPIES * (copy + activations) > free:
        return Finding("memory", "warning", words, "smaller batches, device= with more memory, or memory= to cap each evaluation")
    return Finding("memory", "ok", words)


def _peaks(objective: Objective, dtype: torch.dtype) -> str:
    """What subtraction takes at most, in words: by shapes alone."""
    name, alone = str(dtype)[6:], footprint(objective, dtype).alone
    words = f"; subtraction in {name} takes {alone / 2**20:.3g} MiB at its peak"
    if whole(objective):
        return words
    return f"{words}, and {streamed_bytes(objective, dtype) / 2**20:.3g} MiB a module at a time (method='stream')"


def _widest(objective: Objective) -> torch.dtype:
    """float64, or the model's own dtype where the loss runs in that alone."""
    try:
        with exact_arithmetic(torch.float64):
            unperturbed_loss(objective.replica(torch.float64))
    except NarrowLossError:
        return objective.dtype
    return torch.float64


def _operators(objective: Objective) -> Finding:
    name, remedy = "difference propagation", "float64 subtraction serves, with a rounding floor at small radii"
    try:
        found = operators(objective)
        with DifferenceEvaluator(objective) as evaluator:  # gated: a response is compared with subtraction
            direction = Directions(objective, 1)
            evaluator.responses(direction, [0], [_RADIUS])
            frozen = evaluator.handling.frozen
    except NarrowLossError as error:
        what, _, remedy = str(error).partition("; ")
        return Finding(name, "warning", what, f"{remedy}; until then responses are float32 subtraction, flagged")
    except ValueError as error:  # UntraceableError is one, and weights that no direction moves
        return Finding(name, "warning", f"cannot follow the model: {first_line(error)[:240]}", remedy)
    if frozen:
        words = f"decisions of the forward depend on the weights, and are taken as at w: {few(sorted(frozen))}"
        return Finding(name, "warning", words, remedy)
    if found.fallbacks:
        words = f"no rule for {few(sorted(set(found.fallbacks)))}: evaluated locally in float64, slower"
        return Finding(name, "warning", words, "no effect on results; fastscape status --model lists all operations")
    kind = "smooth" if found.smooth else "kinks followed exactly"
    return Finding(name, "ok", f"{counted(len(found.rows), 'kind')} of operations, all by rules ({found.front_end}, {kind})")


def _double_backward(objective: Objective) -> Finding:
    """As users write it, in their own settings, on the first batch; compared with our products."""
    name, first = "double backward", objective.on(0)
    fused = _fused_weight_norm(objective)
    remedy = "fs.hessian takes a path that works; do not use torch.autograd's double backward, torch.func or PyHessian here"
    dtype = torch.float32 if first.dtype in HALF else first.dtype
    with preserved_rng(), torch.inference_mode(False):
        replica = first.replica(dtype)
        replica.reset()
        layout = Layout(first.names, [tensor.shape for tensor in first.base.values()])
        vector = _signs(layout, dtype, first.device)
        try:
            found = double_backward(replica, vector)()[1]
        except Exception as error:  # whatever torch raises: NotImplementedError, RuntimeError, of custom functions anything
            words = f"torch.autograd fails: {type(error).__name__}: {first_line(error)[:160]}"
            return Finding(name, "warning", words, remedy)
    try:
        expected = hessian(first, distributed=False) @ vector
    except (AsymmetricProductError, NoPathError, ValueError) as error:
        words = f"torch.autograd gives products, but they could not be verified: {first_line(error)[:160]}"
        return Finding(name, "warning", words, remedy)
    size = max(norm(expected), norm(found))
    change = norm([a.double() - b.double() for a, b in zip(found, expected, strict=True)]) / size if size else 0.0
    if math.isnan(change) or change > _WRONG:
        why = f" (torch's fused weight norm in {few(fused)} is known for it on CPUs)" if fused else ""
        return Finding(name, "warning", f"torch.autograd's products are wrong by {change:.1g} of their size{why}", remedy)
    return Finding(name, "ok", f"torch.autograd's Hessian products agree with fs.hessian's to {change:.0e}")


def _products(objective: Objective) -> Finding:
    name = "Hessian products"
    operator = hessian(objective, distributed=False)
    try:
        choice = operator.prepare(1)
    except (AsymmetricProductError, NoPathError) as error:
        remedy = "spectra and sharpness's quadratic model are unavailable; responses, slices and quadratic forms still work"
        return Finding(name, "warning", first_line(error)[:300], remedy)
    finally:
        operator.release()
    words = f"by {choice.name!r}, {choice.gradients:.2g} gradients each, symmetric to {choice.asymmetry:.0e}"
    words = "; ".join((words, *operator.notes))
    if choice.error:
        refused = "; ".join(f"{path}: {why}" for path, why in choice.refused.items())
        words = f"{words}, with a relative error near {choice.error:.0e} ({refused[:200]})"
        wide = "" if objective.dtype == torch.float64 else "float64 makes the error 1e-8; else "
        return Finding(name, "warning", words, f"{wide}give the operation a correct second derivative for exact ones")
    return Finding(name, "ok", words)


def _signs(layout: Layout, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    draws = (torch.randint(0, 2, tuple(shape), generator=generator) * 2 - 1 for shape in layout.shapes)
    return [signs.to(device, dtype) for signs in draws]


def _fused_weight_norm(objective: Objective) -> list[str]:
    """Modules whose weight norm is torch's fused one, on a CPU."""
    if objective.device.type != "cpu":
        return []
    found = []
    for name, module in objective.model.named_modules():
        parametrised = getattr(module, "parametrizations", {})
        kinds = {type(part).__name__ for parts in parametrised.values() for part in parts} if parametrised else set()
        hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
        if "_WeightNorm" in kinds or "WeightNorm" in hooks:
            found.append(name)
    return found


COMPUTING: dict[str, Callable[[Objective], Finding]] = {
    "gradient": _gradient,
    "arithmetic of the loss": _arithmetic,
    "rounding": _rounding,
    "memory": _memory,
    "difference propagation": _operators,
    "double backward": _double_backward,
    "Hessian products": _products,
}
