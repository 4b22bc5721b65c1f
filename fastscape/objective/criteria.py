"""Requirements on criterion, loss and weight, and the number of terms that a criterion averages over."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from fastscape._checks import noted

Criterion = Callable[[Tensor, Tensor], Tensor]
Output = str | Callable[[Any], Tensor]

_MEANS = ("mean", "batchmean")
_COMPARING = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.poisson_nll_loss)
_COMPARING_FORWARDS = {kind.forward for kind in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss)}


def checked_criterion(criterion: Any) -> Criterion:
    """The criterion, with its shapes guarded where it compares outputs and targets element by element.

    Raises:
        TypeError: a name or a class in place of a function or module.
        ValueError: not a mean.
    """
    if isinstance(criterion, type):
        raise TypeError(f"criterion must be an instance, got the class {criterion.__name__}; write {criterion.__name__}()")
    if not callable(criterion):
        raise TypeError(
            f"criterion must be a function or module of (outputs, targets), got {criterion!r}; pass such as "
            "torch.nn.functional.cross_entropy itself"
        )
    reduction = _reduction(criterion)
    if reduction not in _MEANS:
        raise ValueError(f"criterion must be a mean over the batch, got reduction={reduction!r}; use reduction='mean'")
    if isinstance(criterion, partial) and criterion.func in _COMPARING and not criterion.args:
        return partial(SameShape(criterion.func), **criterion.keywords)
    if criterion in _COMPARING or (isinstance(criterion, nn.Module) and type(criterion).forward in _COMPARING_FORWARDS):
        return SameShape(criterion)
    return criterion  # type: ignore[no-any-return]


def _reduction(criterion: Any) -> str:
    """Reduction of torch's criteria, as modules or functions, also where the option is bound; ``"mean"`` for others."""
    if not isinstance(criterion, partial):
        return str(getattr(criterion, "reduction", "mean"))
    function = criterion.func
    if not _is_torch(function):
        return _reduction(function) if isinstance(function, nn.Module) else "mean"
    try:
        bound = inspect.signature(function).bind_partial(*criterion.args, **criterion.keywords).arguments
    except (TypeError, ValueError):
        bound = criterion.keywords
    if bound.get("reduce") is False:
        return "none"
    if bound.get("size_average") is False:
        return "sum"
    return str(bound.get("reduction", getattr(function, "reduction", "mean")))


def _is_torch(criterion: Any) -> bool:
    return getattr(criterion, "__module__", "") in ("torch.nn.functional", "torch.nn.modules.loss", "torch._C._nn", "torch")


def is_known_mean(criterion: Any) -> bool:
    """Whether a criterion is torch's own, and so takes the mean that its checked ``reduction`` says."""
    while isinstance(criterion, (partial, SameShape)):
        criterion = criterion.func if isinstance(criterion, partial) else criterion.criterion
    return _is_torch(criterion)


def checked_loss(loss: Any) -> Callable[..., Tensor]:
    """A loss of (model, batch).

    Raises:
        TypeError: a name, a class, or a criterion of (outputs, targets).
    """
    named = getattr(loss, "__name__", type(loss).__name__)
    if isinstance(loss, _Loss) or getattr(loss, "__module__", "") == "torch.nn.functional":
        raise TypeError(f"loss must be a function of (model, batch), got {named} of (outputs, targets); pass it as criterion=")
    if isinstance(loss, type) or not callable(loss):
        raise TypeError(f"loss must be a function of (model, batch), got {loss!r}; use loss=lambda model, batch: ...")
    return loss  # type: ignore[no-any-return]


def check_output(output: object, loss: object) -> None:
    """Raise unless ``output`` names, or is a function for, what a criterion takes of the model's output; ``None`` for all of it.

    Raises:
        TypeError: something else.
        ValueError: a loss, which takes of the output what it needs.
    """
    if output is None:
        return
    if not callable(output) and not (isinstance(output, str) and output):
        raise TypeError(
            f"output must be a name, or a function of what the model returns, got {output!r}; use such as output='logits' or "
            "output=lambda out: out[0]"
        )
    if loss is not None:
        raise ValueError(f"output must be None with loss=, which takes what it needs of the model's output, got {output!r}")


def taken(output: Output | None, outputs: Any) -> Any:
    """What ``output`` says of a model's outputs.

    Raises:
        ValueError: outputs without that name; lists those that they have.
    """
    if output is None:
        return outputs
    if callable(output):
        with noted(f"raised by output= on what the model returned, {described(outputs)}"):
            return output(outputs)
    found = outputs.get(output) if isinstance(outputs, Mapping) else getattr(outputs, output, None)
    if found is None:
        names = _names_of(outputs)
        raise ValueError(
            f"output must name what the model returns, got {output!r} of {type(outputs).__name__}"
            + (f" with {', '.join(names)}" if names else "; pass output=lambda out: ...")
        )
    return found


def _names_of(outputs: Any) -> list[str]:
    names = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dataclass_fields__", getattr(outputs, "_fields", ()))
    return [str(name) for name in names]


class SameShape(nn.Module):
    """An element-wise criterion that refuses to compare every output with every target."""

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
        """The loss, after a look at what it is given."""
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            if outputs.shape != targets.shape:
                _refuse_outer(outputs.shape, targets.shape)
            if not (targets.is_floating_point() or targets.is_complex()):
                targets = targets.to(outputs.dtype)  # which torch does for the loss, and not for its gradient
        return self.criterion(outputs, targets, **options)


def _refuse_outer(outputs: torch.Size, targets: torch.Size) -> None:
    """Raise where broadcasting repeats both sides; where it repeats one, the mean is that of the larger."""
    try:
        joint = torch.broadcast_shapes(outputs, targets)  # type: ignore[no-untyped-call]
    except RuntimeError:  # the criterion says so itself
        return
    if joint not in (outputs, targets):
        raise ValueError(
            f"criterion must compare outputs and targets of one shape, got outputs {tuple(outputs)} and targets "
            f"{tuple(targets)}, which broadcast to {tuple(joint)}: each output would be compared with every target; use "
            "targets.unsqueeze(-1), or squeeze the outputs"
        )


def criterion_options(criterion: Any) -> tuple[bool, int, Tensor | None]:
    """Whether a criterion averages over class targets as cross-entropy does, its ignored target, and its class weights."""
    keywords = criterion.keywords if isinstance(criterion, partial) else {}
    function = criterion.func if isinstance(criterion, partial) else criterion
    classes = function in (F.cross_entropy, F.nll_loss) or isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss))
    ignored = keywords.get("ignore_index", getattr(criterion, "ignore_index", -100))
    weight = keywords.get("weight", getattr(criterion, "weight", None) if classes else None)
    return classes, int(ignored), weight


def check_targets(criterion: Criterion, targets: Any, index: int) -> None:
    """Refuse class targets that torch's cross-entropy cannot take, before anything is evaluated.

    Raises:
        ValueError: naming the batch, the dtype and the remedy.
    """
    if not isinstance(targets, Tensor) or not criterion_options(criterion)[0]:
        return
    if targets.dtype in (torch.int8, torch.int16, torch.int32, torch.bool):
        raise ValueError(
            f"data[{index}] must hold class targets of torch.int64 for cross-entropy, got targets {described(targets)}; use "
            "targets.long()"
        )
    if targets.is_floating_point() and targets.ndim < 2:
        raise ValueError(
            f"data[{index}] must hold class targets of torch.int64, or probabilities (samples, classes), for cross-entropy, got "
            f"targets {described(targets)}; use targets.long()"
        )


def described(value: object) -> str:
    """Shape and dtype of a tensor, or the type of anything else."""
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def remedy_of(outputs: object, targets: object) -> str:
    """Remedy for a criterion that failed on outputs and targets; empty where none is known."""
    if not isinstance(outputs, Tensor):
        names = _names_of(outputs)
        name = "logits" if "logits" in names else next(iter(names), "")
        part = repr(name) if name else "lambda out: out[0]"
        return f"; pass output={part}, or a function, for the part of them that the criterion takes"
    if not isinstance(targets, Tensor):
        return "; use loss=lambda model, batch: ... for targets that are no tensor"
    if outputs.ndim and targets.ndim and len(outputs) != len(targets):
        return f"; {len(outputs)} outputs want as many targets, got {len(targets)}"
    if targets.is_floating_point():
        return ""
    if outputs.ndim == targets.ndim == 2 and targets.shape[1] == 1:
        return "; classes want targets.squeeze(1), values targets.float()"
    if outputs.ndim == targets.ndim + 1 > 2 and outputs.shape[:-1] == targets.shape:
        return "; classes are dimension 1 of what the criterion takes: add .movedim(-1, 1) in output="
    if outputs.ndim == targets.ndim + 1 and targets.numel():
        count = outputs.shape[1]
        return f"; the targets lie in {int(targets.min())} .. {int(targets.max())}, {count} classes in 0 .. {count - 1}"
    return "; a criterion of values wants targets.float(), one of classes targets.long() and outputs (samples, classes, ...)"


def terms(criterion: Criterion, targets: Any, samples: int) -> float:
    """Number of terms in the mean that ``criterion`` takes over the ``targets`` of a number of samples."""
    if not isinstance(targets, Tensor) or _reduction(criterion) == "batchmean":
        return float(samples)
    classes, ignored, class_weight = criterion_options(criterion)
    if classes and targets.is_floating_point():  # probabilities [B, classes, ...]: one term per distribution
        return targets.numel() / targets.shape[1] if targets.ndim > 1 else 1.0
    if not classes:
        if not targets.is_floating_point() and targets.numel() and bool((targets < 0).any()):
            raise ValueError(
                "criterion hides which targets it ignores, got negative ones; pass weight=lambda batch: n, the number of terms "
                "in a batch's mean"
            )
        return float(targets.numel())
    kept = targets[targets != ignored]
    return float(kept.numel() if class_weight is None else class_weight.to(kept.device)[kept].double().sum())


def ignored_targets(criterion: Criterion | None, batch: Any) -> str:
    """In words, that a batch's class targets are all ignored: those beside the inputs, or the ``labels`` of transformers."""
    if criterion is None:
        targets, ignored = batch.get("labels") if isinstance(batch, Mapping) else None, -100
    else:
        classes, ignored, _ = criterion_options(criterion)
        targets = batch[1] if classes else None
    if not isinstance(targets, Tensor) or targets.is_floating_point() or not targets.numel() or bool((targets != ignored).any()):
        return ""
    return f"all {targets.numel()} targets equal to {ignored}, which is ignored"


def weight_of(weight: Callable[[Any], Any], batch: Any, index: int) -> float:
    """Value of a user's ``weight``, as a float."""
    with noted(f"raised by weight= on data[{index}], a batch of type {type(batch).__name__}"):
        value = weight(batch)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
        raise ValueError(
            f"weight must return the number of terms in a batch's mean, got {found} for data[{index}]; use weight=lambda batch: n"
        ) from error


def correct(criterion: Criterion | None, outputs: Tensor, targets: Any) -> tuple[int, int] | None:
    """Targets that outputs classify correctly, and those that count; ``None`` where the task is not classification."""
    is_classes = isinstance(targets, Tensor) and not targets.is_floating_point() and not targets.is_complex()
    if not is_classes or outputs.ndim != targets.ndim + 1 or outputs.shape[0] != targets.shape[0]:
        return None
    kept = targets != criterion_options(criterion)[1]
    return int(((outputs.argmax(1) == targets) & kept).sum()), int(kept.sum())
