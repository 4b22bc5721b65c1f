"""Checks of the doctor on a model, its loss and data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastscape._checks import counted, first_line
from fastscape._state import exact_arithmetic, preserved_rng
from fastscape.curvature.choice import AsymmetricProductError, NoPathError
from fastscape.curvature.flat import Layout, norm
from fastscape.curvature.forms.quadratic import quadratic_forms
from fastscape.curvature.operator import hessian
from fastscape.curvature.plain import double_backward
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.directions import Directions
from fastscape.evaluation.arithmetic import arithmetic
from fastscape.evaluation.determinism import NarrowLossError, NondeterministicLossError, unperturbed_loss
from fastscape.evaluation.evaluator import activation_bytes
from fastscape.evaluation.noise import SIGNAL_TO_NOISE, rounding
from fastscape.objective.batches import available_memory
from fastscape.objective.norms import tracking
from fastscape.objective.objective import Objective
from fastscape.objective.structures import strided, tensors_of
from fastscape.probes.doctor.result import Finding
from fastscape.response.operators import operators

_NAMED = 4  # names in a finding
_WRONG = 1e-2  # relative difference of a double backward from the Hessian product
_RADIUS = 1e-3  # relative to ||w||, of the response that is compared with subtraction
_TYPICAL = 4  # directions whose curvature tells the size of responses
_COPIES = 6  # of parameters and activations: what a Hessian product with its graph holds
_HALF = (torch.float16, torch.bfloat16)


class ModelCheckup:
    """Looks at an objective; what needs the loss is left out where that cannot be evaluated.

    Args:
        objective: the function.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.loss = math.nan
        self.accuracy: float | None = None
        self._usable = False

    @property
    def remarks(self) -> tuple[str, ...]:
        """Those of the objective, as far as it can be evaluated."""
        return self.objective.remarks if self._usable else tuple(filter(None, [self.objective.weighting.remark]))

    def findings(self) -> Iterator[Finding]:
        """One finding per check; whatever the model raises is one."""
        still: tuple[tuple[str, Callable[[], Finding]], ...] = (
            ("parameters", self._parameters),
            ("frozen and tied", self._frozen),
            ("finite weights", self._finite),
            ("zero weights", self._zeros),
            ("batch norm", self._batch_norm),
            ("random layers", self._random),
            ("data", self._data),
            ("device", self._device),
            ("loss", self._loss),
        )
        moving: tuple[tuple[str, Callable[[], Finding]], ...] = (
            ("gradient", self._gradient),
            ("arithmetic of the loss", self._arithmetic),
            ("rounding", self._rounding),
            ("memory", self._memory),
            ("difference propagation", self._operators),
            ("double backward", self._double_backward),
            ("Hessian products", self._products),
        )
        for name, check in still:
            yield _guarded(name, check)
        if self._usable:
            for name, check in moving:
                yield _guarded(name, check)

    # ------------------------------------------------------------------ without evaluating

    def _parameters(self) -> Finding:
        objective = self.objective
        dtypes = sorted({str(tensor.dtype)[6:] for tensor in objective.model.parameters()})
        words = f"{objective.size:,} parameters in {counted(len(objective.names), 'tensor')}, {', '.join(dtypes)}"
        if objective.dtype in _HALF:
            remedy = "no effect on results; pass Objective(dtype=torch.float32) to state it in them"
            words = f"{words}: responses and products are evaluated on float32 or float64 copies of these weights"
            return Finding("parameters", "warning", words, remedy)
        if len(dtypes) > 1:
            words = f"{words}: all are evaluated in {str(objective.dtype)[6:]}"
            return Finding("parameters", "warning", words, "cast the model to one dtype if that is not what it is used in")
        return Finding("parameters", "ok", words)

    def _frozen(self) -> Finding:
        probed, aliases = set(self.objective.names), dict[int, list[str]]()
        for name, tensor in self.objective.model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(tensor), []).append(name)
        still = [names[0] for names in aliases.values() if not probed & set(names)]
        tied = [" = ".join(names) for names in aliases.values() if len(names) > 1]
        told = [f"tied, and counted once: {_few(tied)}"] if tied else []
        if still:
            told.insert(0, f"{counted(len(still), 'tensor')} that no direction moves: {_few(still)}")
            remedy = "requires_grad_(True), or params= that selects them; else all numbers are of the subspace that moves"
            return Finding("frozen and tied", "warning", "; ".join(told), remedy)
        return Finding("frozen and tied", "ok", "; ".join(told) or "every parameter moves, none is tied")

    def _finite(self) -> Finding:
        state = self.objective.state
        named = {**dict(self.objective.model.named_parameters()), **dict(self.objective.model.named_buffers())}
        held = {name: state[name] if state is not None and name in state else tensor for name, tensor in named.items()}
        held |= self.objective.base
        bad = [
            name
            for name, tensor in held.items()
            if (tensor.is_floating_point() or tensor.is_complex()) and not bool(tensor.isfinite().all())
        ]
        if bad:
            remedy = "load an earlier checkpoint; training diverged, or the file is damaged"
            return Finding("finite weights", "error", f"NaN or inf in {_few(bad)}", remedy)
        return Finding("finite weights", "ok", "no NaN or inf in parameters and buffers")

    def _zeros(self) -> Finding:
        zero = [name for name, tensor in self.objective.base.items() if not bool(tensor.any())]
        if not zero:
            return Finding("zero weights", "ok", "no parameter is zero throughout")
        words = f"{counted(len(zero), 'parameter')} zero throughout: {_few(zero)}; tensor-normalised directions never move them"
        if len(zero) == len(self.objective.names):
            return Finding("zero weights", "error", words, "load or initialise weights; or normalize='none', scale='unit'")
        return Finding("zero weights", "warning", words, "normalize='global' or 'module' moves them; or train a few steps first")

    def _batch_norm(self) -> Finding:
        layers = tracking(self.objective.model)
        untracked = [module for module in self.objective.model.modules() if isinstance(module, _NormBase)]
        if not layers:
            words = f"{counted(len(untracked), 'layer')}, with the statistics of each batch" if untracked else "no layer of it"
            return Finding("batch norm", "ok", words)
        found, asked = self.objective.statistics(), self.objective.batch_norm_asked
        words = f"{counted(len(layers), 'layer')} with running statistics, loss {found.running:.3g}; "
        if found.failure:
            words += f"those of the batch are undefined: {found.failure}"
            remedy = "use larger batches: stability, temperature and difficulty need their statistics"
            return Finding("batch norm", "warning", words, remedy)
        words += f"with those of the batch {found.batch:.3g}; "
        words += (
            "both are probed: running ones, but the batch's, as in training, where an optimizer is given"
            if asked is None
            else (f"{asked!r} were asked for")
        )
        fresh = [name for name in layers if self._initial(name, layers[name])]
        if asked == "batch" or not (fresh or found.differ):
            return Finding("batch norm", "ok", words)
        if fresh:
            words = f"{words}; {len(fresh)} at their initial values 0 and 1: {_few(fresh)}"
        remedy = (
            "batch_norm='batch' for the function that was trained, or run the training data through it in training mode first"
        )
        return Finding("batch norm", "warning", words, remedy)

    def _initial(self, name: str, module: nn.Module) -> bool:
        """Whether running statistics are the mean 0 and variance 1 that they start from."""
        if not isinstance(module, _NormBase):
            return False
        state = self.objective.state or {}
        mean, variance = (state.get(f"{name}.{part}", getattr(module, part)) for part in ("running_mean", "running_var"))
        return not bool(mean.any()) and bool((variance - 1 == 0).all())

    def _random(self) -> Finding:
        kind = nn.modules.dropout._DropoutNd
        layers = [name for name, module in self.objective.model.named_modules() if isinstance(module, kind) and module.p > 0]
        if layers:
            return Finding("random layers", "ok", f"dropout in {_few(layers)}: off in probes, which evaluate a copy in eval()")
        return Finding("random layers", "ok", "no dropout layer; the loss is evaluated twice to see randomness of other kinds")

    def _data(self) -> Finding:
        objective = self.objective
        sizes = [objective.count(batch) for batch in objective.batches]
        words = f"{objective.samples:g} terms in {counted(len(sizes), 'batch')} of {_range(sizes)} samples"
        if any(not bool(part.isfinite().all()) for batch in objective.batches for part in _numbers(batch)):
            return Finding(
                "data", "error", f"{words}, with NaN or inf in them", "clean the data: one such sample is the whole loss"
            )
        rule = objective.weighting.rule.words
        sure = objective.weighting.sure
        if not sure or (len(set(sizes)) > 1 and rule == "their samples"):
            known = "which the halves of a batch confirm" if sure else "a guess"
            words = f"{words}: ragged, and weighted by {rule}, {known}, as loss= states no number of terms"
            return Finding("data", "warning", words, "pass weight=lambda batch: n, the number of terms in each batch's mean")
        return Finding("data", "ok", words + (f": ragged, weighted by {rule}" if len(set(objective.batch_weights)) > 1 else ""))

    def _device(self) -> Finding:
        device = self.objective.device
        if device.type == "cpu" and torch.cuda.is_available():
            remedy = "--device cuda, or Objective(device='cuda')"
            return Finding("device", "warning", f"model and data are on the CPU, beside {torch.cuda.get_device_name()}", remedy)
        return Finding("device", "ok", f"model and data are on {device}")

    # ------------------------------------------------------------------ with the loss

    def _loss(self) -> Finding:
        try:
            with exact_arithmetic(self.objective.dtype):
                self.loss = unperturbed_loss(self.objective.replica(self.objective.dtype))
        except NondeterministicLossError as error:
            what, _, remedy = str(error).rpartition("; ")
            return Finding("loss", "error", what or str(error), remedy if what else "make it a function of weights and data")
        self._usable = True
        self.accuracy = self.objective.evaluate_once()[1]
        words = f"{self.loss:.6g}, the same twice" + ("" if self.accuracy is None else f"; accuracy {self.accuracy:.1%}")
        if not math.isfinite(self.loss):
            return Finding(
                "loss", "error", f"{self.loss} at w", "there is no landscape around such a point: see the findings above"
            )
        return Finding("loss", "ok", words)

    def _gradient(self) -> Finding:
        gradient = self.objective.gradient()
        bad = [name for name, part in gradient.items() if not bool(part.isfinite().all())]
        if bad:
            remedy = "look for square roots, norms and logarithms at zero; spectra and sharpness need the gradient"
            return Finding("gradient", "error", f"NaN or inf at {_few(bad)}", remedy)
        unused = [name for name, part in gradient.items() if not bool(part.any())]
        size = norm(list(gradient.values()))
        if unused and len(unused) < len(gradient):
            words = f"||g|| = {size:.3g}; zero at {_few(unused)}"
            remedy = "params= without them if the loss does not use them: they only add directions in which nothing changes"
            return Finding("gradient", "warning", words, remedy)
        if unused:
            return Finding("gradient", "warning", "zero at every parameter", "does the loss use the model that it is given?")
        return Finding("gradient", "ok", f"||g|| = {size:.3g}, finite")

    def _arithmetic(self) -> Finding:
        """Number formats of the loss, also in float64 probes and difference propagation."""
        name, found = "arithmetic of the loss", arithmetic(self.objective, self.objective.dtype)
        if found.plain:
            return Finding(name, "ok", f"{found.words} throughout")
        if found.outside is not None:
            return Finding(name, "warning", found.words, "enter the autocast in the model or in loss= to have it measured")
        wide = arithmetic(self.objective, torch.float64)
        words = f"{found.words}; with precision='float64': {wide.words}; with 'difference': {wide.difference}"
        remedy = "precision= says which function is measured; the results name it"
        return Finding(name, "warning", words, remedy)

    def _rounding(self) -> Finding:
        """Rounding of a loss, and the radius from which on subtraction resolves responses."""
        objective, name = self.objective, str(self.objective.dtype)[6:]
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

    def _memory(self) -> Finding:
        objective = self.objective
        dtype = self._widest()
        with exact_arithmetic(dtype):
            activations = activation_bytes(objective.replica(dtype)) * 8 // torch.finfo(dtype).bits * 8
        copy, free = 8 * objective.size, available_memory(objective.device)
        words = (
            f"{copy / 2**20:.3g} MiB a copy of the parameters in float64, up to {activations / 2**20:.3g} MiB of activations, "
            f"{free / 2**20:.3g} MiB available"
        )
        if _COPIES * (copy + activations) > free:
            return Finding(
                "memory", "warning", words, "smaller batches, device= with more memory, or memory= to cap each evaluation"
            )
        return Finding("memory", "ok", words)

    def _widest(self) -> torch.dtype:
        """float64, or the model's own dtype where the loss runs in that alone."""
        try:
            with exact_arithmetic(torch.float64):
                unperturbed_loss(self.objective.replica(torch.float64))
        except NarrowLossError:
            return self.objective.dtype
        return torch.float64

    def _operators(self) -> Finding:
        name, remedy = "difference propagation", "float64 subtraction serves, with a rounding floor at small radii"
        try:
            found = operators(self.objective)
            with DifferenceEvaluator(self.objective) as evaluator:  # gated: a response is compared with subtraction
                direction = Directions(self.objective, 1)
                evaluator.responses(direction, [0], [_RADIUS])
                frozen = evaluator.handling.frozen
        except NarrowLossError as error:
            what, _, remedy = str(error).partition("; ")
            return Finding(name, "warning", what, f"{remedy}; until then responses are float32 subtraction, flagged")
        except ValueError as error:  # UntraceableError is one, and weights that no direction moves
            return Finding(name, "warning", f"cannot follow the model: {first_line(error)[:240]}", remedy)
        if frozen:
            words = f"decisions of the forward depend on the weights, and are taken as at w: {_few(sorted(frozen))}"
            return Finding(name, "warning", words, remedy)
        if found.fallbacks:
            words = f"no rule for {_few(sorted(set(found.fallbacks)))}: evaluated locally in float64, slower"
            return Finding(name, "warning", words, "no effect on results; fastscape status --model lists all operations")
        kind = "smooth" if found.smooth else "kinks followed exactly"
        return Finding(name, "ok", f"{counted(len(found.rows), 'kind')} of operations, all by rules ({found.front_end}, {kind})")

    def _double_backward(self) -> Finding:
        """As users write it, in their own settings, on the first batch; compared with our products."""
        name, first = "double backward", self.objective.on(0)
        fused = _fused_weight_norm(self.objective)
        remedy = "fs.hessian takes a path that works; do not use torch.autograd's double backward, torch.func or PyHessian here"
        dtype = torch.float32 if first.dtype in _HALF else first.dtype
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
            expected = hessian(first) @ vector
        except (AsymmetricProductError, NoPathError, ValueError) as error:
            words = f"torch.autograd gives products, but they could not be verified: {first_line(error)[:160]}"
            return Finding(name, "warning", words, remedy)
        size = max(norm(expected), norm(found))
        change = norm([a.double() - b.double() for a, b in zip(found, expected, strict=True)]) / size if size else 0.0
        if math.isnan(change) or change > _WRONG:
            why = f" (torch's fused weight norm in {_few(fused)} is known for it on CPUs)" if fused else ""
            return Finding(name, "warning", f"torch.autograd's products are wrong by {change:.1g} of their size{why}", remedy)
        return Finding(name, "ok", f"torch.autograd's Hessian products agree with fs.hessian's to {change:.0e}")

    def _products(self) -> Finding:
        name = "Hessian products"
        operator = hessian(self.objective)
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
            wide = "" if self.objective.dtype == torch.float64 else "float64 makes the error 1e-8; else "
            return Finding(name, "warning", words, f"{wide}give the operation a correct second derivative for exact ones")
        return Finding(name, "ok", words)


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a model may raise anything; the other checks go on
        words = f"{type(error).__name__}: {first_line(error)[:300]}"
        return Finding(
            name, "error", words, "run model and loss on one batch outside fastscape, in eval(), and see the traceback"
        )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _numbers(batch: object) -> list[Tensor]:
    """The floating-point and complex numbers of a batch."""
    parts = [part for tensor in tensors_of(batch) for part in strided(tensor)]
    return [part for part in parts if part.is_floating_point()]


def _range(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"


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
