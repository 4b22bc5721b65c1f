"""A torch module, a loss and data, as a pure function of the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastscape._batches import Batch, fingerprint, materialise, placed
from fastscape._checks import check_memory, first_line, integer
from fastscape._criteria import Criterion as Criterion
from fastscape._criteria import (
    check_targets,
    checked_criterion,
    checked_loss,
    criterion_options,
    ignored_targets,
    is_known_mean,
    terms,
    weight_of,
)
from fastscape._examination import Findings, confirmed, examine
from fastscape._norms import BatchNormMode, Statistics, compared, frozen, tracking, unmoved
from fastscape._replica import Replica, Traits
from fastscape._state import exact_arithmetic
from fastscape._structures import arrays_of, map_tensors, tensors_of
from fastscape._terms import Rule, Weighting, sample_guess, weighting

Loss = Callable[[nn.Module, Batch], Tensor]
Select = str | Sequence[str] | Callable[[str, Tensor], bool] | None


class Objective:
    r"""The loss of fixed data as a pure, sample-weighted function of a model's parameters.

    .. math:: L(w) = \sum_b n_b L_b(w) \Big/ \sum_b n_b

    with :math:`L_b` the mean loss of batch b, in the arithmetic of the model's dtype, and the sum over batches in
    float64. The model is evaluated on a private copy in evaluation mode (dropout off): the one passed in, its mode,
    buffers, gradients and the global random generators stay bit-identical. Its *weights* are read at every call, so
    an objective built once follows a model that is being trained.

    All derivatives are those of this function of *all* the parameters it is given. Where torch's gradient is another's, it is put
    right: an embedding's row for padding (``padding_idx``), which training leaves alone, counts like every other, and
    ``scale_grad_by_freq`` scales nothing.

    Args:
        model: any ``nn.Module`` in eager mode. ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``
            wrappers are taken off.
        data: iterable of batches, read once and kept (see ``memory``).
        criterion: ``criterion(model(inputs), targets) -> scalar``, a mean over the batch, for batches
            ``(inputs, targets)``; a tuple of inputs is passed as ``model(*inputs)``, a mapping as ``model(**inputs)``.
        loss: ``loss(model, batch) -> scalar mean`` for everything else; it must use the ``model`` it is given.
        weight: ``weight(batch) -> n``, the number of terms in the mean of a batch. Default: with ``criterion``, the
            number of target elements, for cross-entropy (also in ``functools.partial``) without ignored ones and with
            class weights; with ``loss``, ``samples`` where given, and otherwise what the batch's labels tell: see
            :attr:`remarks`, which name a guess.
        samples: number of independent samples in a batch, an int or ``samples(batch) -> n``: the units of standard errors
            and of per-sample gradients. Default: rows of the labels or targets, else of the first tensor.
        params: which parameters to move: ``None`` for every trainable one, a glob or globs on their names, or a
            predicate ``(name, tensor) -> bool``. Tied parameters count once; frozen ones are left out.
        batch_norm: statistics of batch norm and of other layers that keep running ones: ``"running"``, or ``"batch"``, those of
            each batch; neither updates them. ``None`` is ``"running"`` for the loss itself, slices, barriers, sharpness, spectra
            and responses, and ``"batch"``, the function that was trained, for what speaks of training: stability of an
            optimizer (and the spectrum beside it), temperature, difficulty, tracker, signature (see :meth:`trained`). Results
            say both losses where they differ by more than 5 %.
        dtype: floating dtype the weights are rounded to first; ``None`` keeps the model's.
        device: where to evaluate; ``None`` for the model's device.
        memory: bytes that the data may take; default half of the available memory. Data without a length, which may have no end,
            are refused beyond 4096 batches or 4 GiB unless ``memory`` is given.

    Raises:
        TypeError, ValueError: naming the argument, its value and the remedy, before any work is done.

    Cost: one copy of the model's parameters while a call runs; nothing between calls but the data.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> data = [(torch.ones(2, 4), torch.tensor([0, 2]))]
        >>> objective = fs.Objective(model, data, criterion=torch.nn.functional.cross_entropy)
        >>> objective.size, objective.names
        (15, ('weight', 'bias'))
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Batch],
        *,
        criterion: Criterion | None = None,
        loss: Loss | None = None,
        weight: Callable[[Batch], float] | None = None,
        samples: int | Callable[[Batch], int] | None = None,
        params: Select = None,
        batch_norm: BatchNormMode | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        memory: int | None = None,
    ) -> None:
        self.model = _checked_model(model)
        if (criterion is None) == (loss is None):
            got = "neither" if loss is None else "both"
            raise ValueError(f"pass either criterion= for (inputs, targets) batches or loss= for any other, got {got}")
        check_memory(memory)
        if batch_norm is not None:
            _check_batch_norm(batch_norm)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"dtype must be a floating-point torch dtype, got {dtype!r}; use such as torch.float64")
        if weight is not None and not callable(weight):
            raise TypeError(f"weight must be a function of a batch, got {weight!r}; use weight=lambda batch: n")
        if samples is not None and not callable(samples):
            samples = integer("samples", samples, 1)
        self.criterion = None if criterion is None else checked_criterion(criterion)
        self.user_loss = None if loss is None else checked_loss(loss)
        self.batch_norm_asked, self.batch_norm = batch_norm, batch_norm or "running"
        self.tracking, self._frozen = tuple(tracking(self.model)), frozen(self.model)
        self._statistics: tuple[str, Statistics] | None = None
        self.names = _selected(self.model, params)
        self.known: dict[Any, Any] = {}  # of the function, found once by probes and shared with what is derived from this
        self._state: Mapping[str, Tensor] | None = None
        self._found: list[Findings] = []  # one at most, shared by the copies of this objective
        self.dtype = dtype or reduce(torch.promote_types, (tensor.dtype for tensor in self._source))
        self.device = _device(self.model, device)
        batches = materialise(data, memory)
        self.traits = Traits(leaves=tuple(tensor.requires_grad for tensor in tensors_of(batches[0])))
        self.batches = self._checked_batches(batches, move=device is not None)
        self._user_weight, self._user_samples = weight, samples
        self.weighting = self._weighting()
        self.batch_weights = tuple(self._weight(index) for index in range(len(self.batches)))

    # ------------------------------------------------------------------ the function and its parameters

    @property
    def base(self) -> dict[str, Tensor]:
        """The probed parameters by name, in the objective's dtype and on its device (views where possible)."""
        return {name: tensor.detach().to(self.device, self.dtype) for name, tensor in zip(self.names, self._source, strict=True)}

    @property
    def size(self) -> int:
        """D, the number of probed parameters."""
        return sum(tensor.numel() for tensor in self._source)

    @property
    def norm(self) -> float:
        """||w||, the Euclidean norm of the probed parameters, accumulated in float64."""
        with torch.no_grad():
            return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in self.base.values()))

    @property
    def samples(self) -> float:
        """Total weight of the data: samples, or terms of the mean (see ``weight``)."""
        return math.fsum(self.batch_weights)

    def loss(self) -> float:
        """L(w) in the objective's dtype, summed over batches in float64. Cost: one forward per batch."""
        return self.evaluate_once()[0]

    def accuracy(self) -> float | None:
        """Share of correctly classified targets, or ``None`` where the task is not classification by ``criterion``.

        Classification means integer targets ``[B, ...]`` and outputs ``[B, classes, ...]``; ignored targets
        (``criterion.ignore_index``, default -100) are left out. Cost: one forward per batch.
        """
        return self.evaluate_once()[1]

    def evaluate_once(self) -> tuple[float, float | None]:
        """L(w) and the accuracy from one forward per batch."""
        with exact_arithmetic(self.dtype):
            replica = self.replica(self.dtype)
            replica.reset()
            correct = total = 0
            value = 0.0
            for index in range(len(self.batches)):
                loss, outputs = replica.batch_loss(index)
                value += self.batch_weights[index] * float(loss)
                counts = None if outputs is None else self._correct(outputs, self.batches[index][1])
                if counts is not None:
                    correct, total = correct + counts[0], total + counts[1]
        return value / self.samples, correct / total if total else None

    def gradient(self) -> dict[str, Tensor]:
        """Gradient of L with respect to the probed parameters, by name. Cost: one forward and backward per batch."""
        with exact_arithmetic(self.dtype):
            replica = self.replica(self.dtype)
            replica.reset()
            return dict(zip(self.names, replica.gradient(), strict=True))

    def at(self, state: Mapping[str, Tensor]) -> Objective:
        """The same function with the weights and buffers of ``state``, a state dict of this model.

        Raises:
            ValueError: missing or extra keys or wrong shapes; the first few are listed.
        """
        other = self._copy()
        other._state = matched_state(self.model, state)
        return other

    def on(self, batch: int) -> Objective:
        """The same function on batch number ``batch`` alone."""
        batch = integer("batch", batch, 0)
        if batch >= len(self.batches):
            raise ValueError(f"batch must be below the number of batches, {len(self.batches)}, got {batch}")
        other = self._copy()
        other.batches, other.batch_weights = [self.batches[batch]], (self.batch_weights[batch],)
        return other

    def of(self, batches: Sequence[Batch]) -> Objective:
        """The same function on other batches of the structure of its own, on its device; those without terms are left out.

        Raises:
            ValueError: no batch has terms.
        """
        weights = [self.terms(batch, index) for index, batch in enumerate(batches)]
        kept = [index for index, weight in enumerate(weights) if weight != 0]
        if not kept:
            raise ValueError("batches must hold at least one term of the loss, got none")
        other = self._copy()
        other.batches, other.batch_weights = [batches[index] for index in kept], tuple(weights[index] for index in kept)
        return other

    def whole(self) -> Objective:
        """The same function of every floating-point parameter, also those that were frozen or not selected."""
        other = self._copy()
        other.names = tuple(
            name for name, tensor in self.model.named_parameters() if tensor.is_floating_point() and tensor.numel()
        )
        return other

    def normalised(self, batch_norm: BatchNormMode) -> Objective:
        """The same function with batch norm by ``"running"`` statistics or by those of each ``"batch"``, as if asked for."""
        _check_batch_norm(batch_norm)
        other = self.switched(batch_norm)
        other.batch_norm_asked = batch_norm
        return other

    def switched(self, batch_norm: BatchNormMode) -> Objective:
        """The same function by other statistics, where what was asked for stays what it is."""
        other = self._copy()
        other.batch_norm, other._statistics = batch_norm, self._statistics
        return other

    def trained(self) -> Objective:
        """The function that training lowers: by the statistics of each batch, unless others were asked for.

        Layers that a model in training mode keeps in evaluation mode are taken as frozen, with their running statistics. Where
        the batch's cannot be had (a single value per channel) it is this objective itself.

        Cost: two forwards per batch at new weights.
        """
        if self.batch_norm_asked is not None or not self.by_batch or self.statistics().failure or unmoved(self):
            return self
        return self.switched("batch")

    @property
    def by_batch(self) -> tuple[str, ...]:
        """Layers that ``"batch"`` statistics concern, by name."""
        return tuple(name for name in self.tracking if self.batch_norm_asked is not None or name not in self._frozen)

    def statistics(self) -> Statistics:
        """L(w) by running statistics and by those of each batch, evaluated once at each weights."""
        key = self.weight_fingerprint()
        if self._statistics is None or self._statistics[0] != key:
            self._statistics = key, compared(self)
        return self._statistics[1]

    def cast(self, dtype: torch.dtype) -> Objective:
        """The same function in the arithmetic of another floating dtype, at the weights as ``dtype`` holds them."""
        other = self._copy()
        other.dtype = dtype
        return other

    def terms(self, batch: Batch, index: int = 0) -> float:
        """Number of terms in the mean of a batch (see ``weight``); ``index`` is for messages."""
        if self._user_weight is not None:
            return weight_of(self._user_weight, batch, index)
        return float(self.weighting.rule.count(batch))

    def count(self, batch: Batch) -> int:
        """Number of samples in a batch (see ``samples``)."""
        if self._user_samples is None:
            return sample_guess(batch)
        if callable(self._user_samples):
            return integer("samples(batch)", self._user_samples(batch), 0)
        return self._user_samples

    def replica(self, dtype: torch.dtype) -> Replica:
        """A private copy of the model and data in ``dtype``, whose parameters are scratch space."""
        return Replica(self, dtype)

    @property
    def findings(self) -> Findings:
        """What the first evaluation showed; cost: that evaluation, once."""
        if not self._found:
            self._found.append(examine(self))
        return self._found[0]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know of this function beside its numbers, in sentences: guesses, and what the forward was seen to do.

        Cost: none after the first evaluation.

        Raises:
            ValueError: the loss of a batch is a sum over its samples.
        """
        guess = (self.weighting.remark,) if self.weighting.remark else ()
        return (*guess, *self.findings.remarks)

    def says_sum(self, batch: Batch, twice: Batch) -> bool:
        """Whether losses of batches may be sums: the given weight is that of every sample twice, or batches are of one sample."""
        if self._user_weight is None:
            return all(self.count(each) == 1 for each in self.batches)
        try:
            return weight_of(self._user_weight, batch, 0) == weight_of(self._user_weight, twice, 0)
        except Exception:  # a weight that takes no other batch
            return False

    @property
    def state(self) -> Mapping[str, Tensor] | None:
        """The state dict set by :meth:`at`, or ``None`` while the model's own weights are used."""
        return self._state

    # ------------------------------------------------------------------ fingerprints

    def data_fingerprint(self) -> str:
        """SHA-256 of the data: dtypes, shapes and bytes of every tensor of every batch, in order."""
        return fingerprint((str(index), batch) for index, batch in enumerate(self.batches))

    def weight_fingerprint(self) -> str:
        """SHA-256 of all parameters and buffers: names, dtypes, shapes and bytes."""
        return fingerprint(sorted(matched_state(self.model, self._state or self.model.state_dict()).items()))

    # ------------------------------------------------------------------ private

    @property
    def _source(self) -> list[Tensor]:
        tensors = self._state if self._state is not None else dict(self.model.named_parameters())
        return [tensors[name] for name in self.names]

    def _copy(self) -> Objective:
        other = object.__new__(Objective)
        other.__dict__.update(self.__dict__)
        other._statistics = None  # of other data, or in another arithmetic
        return other

    def _checked_batches(self, batches: list[Batch], *, move: bool) -> list[Batch]:
        if self.criterion is not None:
            _check_pairs(batches, self.criterion)
        for index, batch in enumerate(batches):
            devices = {tensor.device for tensor in tensors_of(batch)}
            if not move and devices - {self.device}:
                raise ValueError(
                    f"data[{index}] must be on the model's device {self.device}, got {sorted(map(str, devices))}; "
                    f"pass device='{self.device}' to move both"
                )
        return [placed(map_tensors(batch, Tensor.detach), self.device) for batch in batches]  # traits know which needed gradients

    def _weighting(self) -> Weighting:
        if self._user_weight is not None:
            return Weighting(Rule("weight=", self._user_weight))
        if self.criterion is None and self._user_samples is not None:
            return Weighting(Rule("samples=", self.count))
        own: Rule | None = None
        if self.criterion is not None:
            criterion = self.criterion
            own = Rule("terms of the criterion", lambda batch: terms(criterion, batch[1], self.count(batch)))
            if is_known_mean(criterion) or criterion_options(criterion)[0]:
                return Weighting(own)
            for batch in self.batches:
                own.count(batch)  # refuses targets whose ignored ones it hides
        return weighting(self.model, self.batches, self.count, own, partial(confirmed, self))

    def _weight(self, index: int) -> float:
        value = self.terms(self.batches[index], index)
        ignored = ignored_targets(self.criterion, self.batches[index])
        if ignored and (value == 0 or self._user_weight is None):
            raise ValueError(
                f"data[{index}] must hold a target that counts, got {ignored}: the mean over no terms is NaN; leave the batch out"
            )
        if not (math.isfinite(value) and value > 0):
            why = (
                "are all its targets ignored?"
                if tensors_of(self.batches[index]) and self.count(self.batches[index])
                else "is it empty?"
            )
            raise ValueError(f"weight of a batch must be positive and finite, got {value} for data[{index}]; {why} Leave it out")
        return value

    def _correct(self, outputs: Tensor, targets: Any) -> tuple[int, int] | None:
        is_classes = isinstance(targets, Tensor) and not targets.is_floating_point() and not targets.is_complex()
        if not is_classes or outputs.ndim != targets.ndim + 1 or outputs.shape[0] != targets.shape[0]:
            return None
        kept = targets != criterion_options(self.criterion)[1]
        return int(((outputs.argmax(1) == targets) & kept).sum()), int(kept.sum())


def _check_pairs(batches: list[Batch], criterion: Criterion) -> None:
    """Raise unless every batch is (inputs, targets), both of tensors."""
    if len(batches) == 2 and all(isinstance(batch, (Tensor, np.ndarray)) for batch in batches):
        shapes = " and ".join(str(tuple(batch.shape)) for batch in batches)
        raise ValueError(f"data must hold batches, got two tensors of shapes {shapes}; write [(inputs, targets)] for one batch")
    for index, batch in enumerate(batches):
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            found = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(
                f"data[{index}] must be a pair (inputs, targets) for criterion=, got {found}; "
                "use loss=lambda model, batch: ... for other batches"
            )
        array = next(iter(arrays_of(batch)), None)
        if array is not None:
            raise ValueError(
                f"data[{index}] must hold tensors, got a NumPy array of shape {array.shape}; convert it with torch.from_numpy"
            )
        if not tensors_of(batch[1]):
            raise ValueError(f"data[{index}] must hold targets, got {type(batch[1]).__name__} beside the inputs")
        check_targets(criterion, batch[1], index)


def checked_objective(value: object) -> Objective:
    """``value`` as an objective, or a TypeError that says how to make one."""
    if not isinstance(value, Objective):
        raise TypeError(
            f"objective must be a fastscape.Objective, got {type(value).__name__}; make one of model, data and loss: "
            "fs.Objective(model, data, criterion=torch.nn.functional.cross_entropy)"
        )
    return value


def matched_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` completed by the aliases of tied tensors, or raise a ValueError that lists what does not fit."""
    if not isinstance(state, Mapping):
        remedy = "pass its state_dict()" if isinstance(state, nn.Module) else "pass model.state_dict(), or torch.load(path)"
        raise TypeError(f"state must be a state dict, got {type(state).__name__}; {remedy}")
    expected = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    aliases: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        aliases.setdefault(id(tensor), []).append(name)
    complete = {name: value for name, value in state.items() if isinstance(value, Tensor)}  # no extra state
    for names in aliases.values():  # safetensors keeps one name of a tied tensor
        present = next((name for name in names if name in complete), None)
        if present is not None:
            complete.update({name: complete[present] for name in names if name not in complete})
    problems = [f"missing {name}" for name in expected if name not in complete]
    problems += [f"unexpected {name}" for name in complete if name not in expected]
    problems += [
        f"{name} has shape {tuple(complete[name].shape)}, the model {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in complete and complete[name].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        inner = next((key for key, value in state.items() if isinstance(value, Mapping) and set(expected) & set(value)), None)
        remedy = f"; pass its entry {inner!r}" if inner is not None else ""
        raise ValueError(f"state must match {type(model).__name__}, got: {'; '.join(problems[:5])}{more}{remedy}")
    return complete


def _checked_model(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        how = {
            "type": "an instance of it",
            "OrderedDict": "the module that it was saved from",
            "dict": "the module of that state",
        }
        remedy = how.get(type(model).__name__, "the network itself; a function can be the forward of a module of its own")
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}; pass {remedy}")
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"model must be an eager module, got TorchScript in {name or 'the root'}: its parameters cannot be "
                "replaced one evaluation at a time; pass the module it was scripted from"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"model must be initialised, got the lazy tensor {name!r}; run one forward first")
        if tensor.is_meta:
            raise ValueError(f"model must hold data, got {name!r} on the meta device; load its weights first")
    return model


def _selected(model: nn.Module, params: Select) -> tuple[str, ...]:
    """Canonical names of the parameters to move; a tied parameter matches by any of its names."""
    aliases: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(tensor), []).append(name)
    globs = [params] if isinstance(params, str) else params
    if not (globs is None or callable(globs)):
        others = [globs] if not isinstance(globs, Sequence) else [glob for glob in globs if not isinstance(glob, str)]
        if others:
            raise TypeError(
                f"params must be names or globs of them, or a function (name, tensor) -> bool, got {type(others[0]).__name__}; "
                f"write such as params={next(iter(dict(model.named_parameters())), 'name')!r}"
            )

    def wanted(name: str, tensor: Tensor) -> bool:
        if globs is None:
            return True
        if callable(globs):
            return bool(globs(name, tensor))
        return any(fnmatchcase(alias, glob) for alias in aliases[id(tensor)] for glob in globs)

    found = [(name, tensor) for name, tensor in model.named_parameters() if wanted(name, tensor)]
    movable = [(name, tensor) for name, tensor in found if tensor.requires_grad and tensor.numel()]
    if not movable:
        if not aliases:
            why = "the model has no parameters"
        elif found:
            why = f"all {len(found)} that match are frozen, empty or hold integers; call .requires_grad_(True) on those to move"
        else:
            why = f"none matches; the names are {', '.join(name for name, _ in model.named_parameters())[:200]}"
        raise ValueError(f"params must select at least one trainable parameter, got params={params!r}: {why}")
    for name, tensor in movable:
        if not tensor.is_floating_point():
            raise ValueError(
                f"params must select real floating-point tensors, got the {'complex' if tensor.is_complex() else 'integer'} "
                f"parameter {name!r} of {tensor.dtype}; move the others with params=lambda name, tensor: "
                "tensor.is_floating_point(), which keeps it fixed, or hold it as real pairs (torch.view_as_complex in forward)"
            )
    return tuple(name for name, _ in movable)


def _check_batch_norm(batch_norm: object) -> None:
    if batch_norm not in ("running", "batch"):
        raise ValueError(f"batch_norm must be 'running', 'batch' or None, got {batch_norm!r}")


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    if device is not None:
        try:
            return torch.empty(0, device=device).device  # "cuda" becomes "cuda:0", as tensors name it
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device must be usable on this machine, got {str(device)!r} ({first_line(error)})") from error
    found = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(found) != 1:
        raise ValueError(
            f"model must be on one device, got {sorted(map(str, found))}; move it, or pass device= to evaluate a copy there"
        )
    return found.pop()
