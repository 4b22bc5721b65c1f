"""The private copy of a model on which an objective is evaluated."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

from fastscape._deadline import check_deadline
from fastscape._heap import fit
from fastscape._state import private_draws
from fastscape.objective.batches import Batch, cast, placed
from fastscape.objective.checkpoints import check_checkpoints, refused_checkpoints
from fastscape.objective.criteria import Criterion, correct, described, remedy_of, taken
from fastscape.objective.definition import Definition
from fastscape.objective.embedding import PlainEmbeddings, has_altered_gradient, went_through_altered_gradient
from fastscape.objective.private import held_tensors, moved
from fastscape.objective.private_copy import private_copy
from fastscape.objective.sharding import needs_whole
from fastscape.objective.structures import map_tensors, strided, tensors_of

Fill = Callable[[int, Tensor, Tensor], object]
MODEL_NOTE = "raised by the model or the loss on batch"


class _LossModule(nn.Module):
    """``loss(model, batch)`` as a module, so that ``functional_call`` can replace the model's parameters.

    Parameters that the forward writes into (``max_norm``, weight clipping) are handed to it as copies made anew for every
    evaluation, so that the loss stays a function of the parameters and nobody's tensor is written into.
    """

    def __init__(self, model: nn.Module, objective: Definition, dtype: torch.dtype, rewritten: frozenset[str]) -> None:
        super().__init__()
        self.model = model
        self._pair = placed_criterion(objective.criterion, objective.device, dtype)
        self._loss, self._output = objective.user_loss, objective.output
        self._traits, self._known, self._statistics = objective.traits, objective.known, objective.batch_norm
        self.rewritten, self._shielded = rewritten, False
        self.plain_embeddings = has_altered_gradient(model)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        check_deadline()
        fit()
        with private_draws(self._known, self._statistics):
            return self._evaluated_once(batch)

    def _evaluated_once(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if torch.is_grad_enabled() or not self._traits.differentiates:
            return self._shielded_from_writes(batch)
        with torch.enable_grad():
            value, outputs = self._shielded_from_writes(batch)
        return value.detach() if isinstance(value, Tensor) else value, None if outputs is None else outputs.detach()

    def _shielded_from_writes(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if not self.rewritten or self._shielded:
            return self._plainly_evaluated(batch)
        held = dict(self.model.named_parameters())
        copies = {f"model.{name}": held[name].clone() for name in self.rewritten}
        self._shielded = True
        try:
            found: tuple[Tensor, Tensor | None] = functional_call(self, copies, (batch,))
        finally:
            self._shielded = False
        return found

    def _plainly_evaluated(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        # An autocast inside keeps its casts of the weights while any other is around it, and one made beforehand, as an
        # attribute or a decorator, keeps its own choice to do so; the weights have moved since.
        torch.clear_autocast_cache()
        with PlainEmbeddings() if self.plain_embeddings else nullcontext():
            return self._evaluated(batch)

    def _evaluated(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if not torch.is_grad_enabled():
            return self._called(batch)
        for tensor, leaf in zip(tensors_of(batch), self._traits.leaves, strict=False):
            if leaf:  # as the user's own tensor was: the loss differentiates with respect to it
                tensor.requires_grad_()
        if self._traits.checkpoints is not None:
            return self._called(batch)
        with refused_checkpoints():
            value, outputs = self._called(batch)
            check_checkpoints(value)
        self._traits.checkpoints = False
        return value, outputs

    def _called(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if self._pair is None:
            assert self._loss is not None
            return self._loss(self.model, batch), None
        inputs, targets = batch
        try:
            if isinstance(inputs, Mapping):
                outputs = self.model(**inputs)
            elif isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
                outputs = self.model(*inputs)
            else:
                outputs = self.model(inputs)
        except Exception as error:
            given = ", ".join(described(tensor) for tensor in tensors_of(inputs))
            error.add_note(f"the model was given inputs {given or described(inputs)}")
            raise
        outputs = taken(self._output, outputs)
        try:
            return self._pair(outputs, targets), outputs if isinstance(outputs, Tensor) else None
        except Exception as error:
            error.add_note(
                f"criterion was given outputs {described(outputs)} and targets {described(targets)}{remedy_of(outputs, targets)}"
            )
            raise


def placed_criterion(criterion: Criterion | None, device: torch.device, dtype: torch.dtype) -> Criterion | None:
    """The criterion with its class weights and constants on the device and in the dtype of the logits."""
    if isinstance(criterion, nn.Module):
        memo: dict[int, object] = {}
        tensors = [*criterion.parameters(), *criterion.buffers(), *held_tensors(criterion)]
        for tensor in tensors:
            copied = cast(tensor.detach(), device, dtype).clone()
            memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
        return moved(copy.deepcopy(criterion, memo), device, dtype)
    if isinstance(criterion, partial):
        function = placed_criterion(criterion.func, device, dtype)
        assert function is not None
        return partial(function, *placed(criterion.args, device, dtype), **placed(criterion.keywords, device, dtype))
    return criterion


def _returns_fresh_tensors(criterion: Criterion | None) -> bool:
    """Whether a criterion is torch's own; another may keep the tensor that it returns and change it, or attach a graph to it."""
    function = criterion.func if isinstance(criterion, partial) else criterion
    of_torch = ("torch.nn.functional", "torch.nn.modules.loss")
    return (getattr(function, "__module__", "") if callable(function) else "") in of_torch


class Replica:
    """A copy of an objective's model and data in one dtype; its parameters are scratch space.

    ``base[i]`` are the objective's weights (read, never written) and ``scratch[i]`` the copy's parameters, in the order
    of ``objective.names``. Parameters that are not probed are shared with the user's model where dtype and device
    allow, and the forward was seen not to write into them (see
    :func:`fastscape.objective.examination.replica_of`). Layers with running statistics use the batch's own in ``"batch"``
    mode, and nothing of theirs is updated (:func:`fastscape.objective.norms.use_batch`).

    ``rewritten``: names of the parameters that the forward writes into; ``None`` for the evaluation that finds them out, on a
    copy that shares nothing.

    Memory: one copy of the probed parameters, and of the data where it needs casting.
    """

    def __init__(self, objective: Definition, dtype: torch.dtype, rewritten: frozenset[str] | None) -> None:
        if objective.sharding is not None:
            raise needs_whole()
        self.objective, self.dtype = objective, dtype
        own = frozenset(name for name, _ in objective.model.named_parameters()) if rewritten is None else rewritten
        probed = frozenset(objective.names)

        def data(name: str, source: Tensor) -> Tensor:
            if name in probed:
                own_layout = objective.model.get_parameter(name)
                return torch.empty_like(own_layout, device=objective.device, dtype=dtype, requires_grad=False)
            held = cast(source, objective.device, dtype)
            return held.clone() if name in own and held is source else held

        self.module = _LossModule(private_copy(objective, dtype, data), objective, dtype, rewritten or frozenset())
        self.batches = [placed(batch, objective.device, dtype) for batch in objective.batches]
        self.base = list(objective.base.values())
        parameters = dict(self.module.model.named_parameters())
        self.scratch = [parameters[name].data for name in objective.names]
        self._still: list[Tensor] = [held for name, held in parameters.items() if name not in own and name not in objective.names]
        self._begin()

    def _begin(self) -> None:
        self.evaluations = self.forwards = 0  # of the loss, asked for; of any batch, done
        self.gate = 2.0  # evaluations that the determinism gate took
        self._fresh = _returns_fresh_tensors(self.objective.criterion)
        self._overwritten: dict[int, bool] = {}  # whether the model writes into a batch's tensors
        self._differentiated: set[int] = set()  # batches whose graph was looked at

    def widen_criterion(self) -> None:
        """Take the criterion in float64 of the outputs, so that its mean adds no rounding; a ``loss=`` stays as it is."""
        if self.objective.criterion is None:
            return
        device = self.objective.device
        pair = placed_criterion(self.objective.criterion, device, torch.float64)
        assert pair is not None

        def widened(outputs: object, targets: object) -> Tensor:
            return pair(*map_tensors((outputs, targets), lambda tensor: cast(tensor, device, torch.float64)))  # keeps the graph

        self.take_criterion(widened)

    @property
    def criterion(self) -> Criterion | None:
        """The criterion that the loss takes of (outputs, targets); ``None`` for a ``loss=``."""
        return self.module._pair

    def take_criterion(self, criterion: Criterion) -> None:
        """Use another criterion in place of the objective's."""
        del self.module._pair  # where it is a module, assigning a function to its name is refused
        self.module._pair = criterion

    def reset(self) -> None:
        """Write the unperturbed weights into the scratch parameters."""
        self.fill(lambda _, slot, base: slot.copy_(base))

    def fill(self, write: Fill) -> None:
        """Write every parameter: ``write`` gets its position, its tensor to write to and the unperturbed weights."""
        for index, (slot, base) in enumerate(zip(self.scratch, self.base, strict=True)):
            write(index, slot, base)

    def alter(self, change: Callable[[int, Tensor], object]) -> None:
        """Change every parameter as it was written last: ``change`` gets its position and its tensor."""
        for index, slot in enumerate(self.scratch):
            change(index, slot)

    @contextmanager
    def noted(self, note: Callable[[Tensor], object]) -> Iterator[None]:
        """Have ``note`` told of the parameters that the forwards inside take."""
        for parameter in self.module.parameters():
            note(parameter)
        yield

    def another(self) -> Replica:
        """A copy that was never evaluated."""
        return Replica(self.objective, self.dtype, self.module.rewritten)

    def take(self, objective: Definition) -> None:
        """Evaluate on the batches of ``objective`` from now on: the same function of the same parameters on other data."""
        self.objective = objective
        self.batches = [placed(batch, objective.device, self.dtype) for batch in objective.batches]
        self.forget()

    def forget(self) -> None:
        """Forget which batches the model writes into: they are others."""
        self._overwritten.clear()
        self._differentiated.clear()

    def batch(self, index: int) -> Batch:
        """A batch that the model may have for one evaluation: a copy unless it is known to leave its inputs alone."""
        kept = self._overwritten.get(index) is False
        return self.batches[index] if kept else map_tensors(self.batches[index], Tensor.clone)

    def batch_loss(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Mean loss of one batch at the scratch parameters, and the model's outputs.

        The first evaluation checks that the loss is a floating-point scalar, and works on a copy of the batch to see whether
        the model writes into its inputs; if so, every evaluation gets a copy. Exceptions carry the note
        :data:`MODEL_NOTE`.
        """
        overwritten = self._overwritten.get(index)
        batch = self.batch(index)
        versions = _versions(tensors_of(batch)) if overwritten is None else []
        still = _versions(self._still)
        try:
            value, outputs = self._evaluated(index, batch)
        except Exception as error:
            error.add_note(f"{MODEL_NOTE} {index}{self._mode()}")
            raise
        if still != _versions(self._still):
            raise RuntimeError(
                "the forward must write into the same parameters at every evaluation, but it wrote into one not probed on "
                f"batch {index}, after writing to none of them before: restore the weights and remove the write"
            )
        if overwritten is None:
            self._overwritten[index] = versions != _versions(tensors_of(batch))
            check_scalar(value, "criterion" if self.objective.criterion is not None else "loss")
        return value, outputs

    def _mode(self) -> str:
        """In words, unless the loss has changed it: some models return something else in training mode, or need it."""
        return "" if self.module.model.training else ", with the private copy of the model in evaluation mode"

    def _forward(self, index: int, batch: Batch) -> tuple[Tensor, Tensor | None]:
        self.forwards += 1
        value, outputs = self.module.forward(batch)  # our own wrapper has no hooks; the model's are called
        if self._needs_plain_embeddings(index, value):
            self.module.plain_embeddings = True
            value, outputs = self.module.forward(self.batch(index))
        return value, outputs

    def _needs_plain_embeddings(self, index: int, value: object) -> bool:
        """Whether the graph of a batch's loss, looked at once, leaves rows of an embedding out of its gradient."""
        if index in self._differentiated or not (isinstance(value, Tensor) and value.requires_grad):
            return False
        self._differentiated.add(index)
        return not self.module.plain_embeddings and went_through_altered_gradient(value)

    def _evaluated(self, index: int, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """A batch's loss; what fails without gradients is tried with them, for models and losses that differentiate."""
        traits = self.objective.traits
        try:
            found = self._forward(index, batch)
        except Exception as error:
            before = traits.differentiates
            if torch.is_grad_enabled() or not (before is None or _wants_gradients(error)):  # what ran before may fail once
                raise
            try:
                traits.differentiates = True
                return self._forward(index, self.batch(index))
            except Exception as second:
                traits.differentiates = before
                raise (second if _wants_gradients(error) else error) from None
        if traits.differentiates is None and not torch.is_grad_enabled():
            traits.differentiates = False
        return found

    def settle(self) -> None:
        """Learn on the first batch, unless it is known, whether the loss differentiates."""
        if self.objective.traits.differentiates is None:
            self.batch_loss(0)

    def loss(self) -> Tensor:
        """L at the scratch parameters, 0-dim, on the device (no synchronisation).

        float64 over several batches; over a single one it is the batch's mean as the model computed it, which needs no further
        rounding.
        """
        self.evaluations += 1
        first = self.batch_loss(0)[0]
        if not self._fresh:
            first = first.detach().clone()
        if len(self.batches) == 1:
            return first
        weights = self.objective.batch_weights
        total = first.double() * weights[0]
        for index in range(1, len(weights)):
            total.add_(self.batch_loss(index)[0].double() * weights[index])
        return total / self.objective.samples

    def loss_and_accuracy(self) -> tuple[float, float | None]:
        """L, summed over batches in float64, and the share of correctly classified targets, from the same forwards."""
        right = total = 0
        value = 0.0
        for index, (batch, weight) in enumerate(zip(self.objective.batches, self.objective.batch_weights, strict=True)):
            loss, outputs = self.batch_loss(index)
            value += weight * float(loss)
            counts = None if outputs is None else correct(self.objective.criterion, outputs, batch[1])
            if counts is not None:
                right, total = right + counts[0], total + counts[1]
        return value / self.objective.samples, right / total if total else None

    def gradient(self) -> list[Tensor]:
        """Gradient of L at the scratch parameters; zeros for parameters that the loss does not use."""
        return self.loss_and_gradient()[1]

    def loss_and_gradient(self, batches: Sequence[int] | None = None) -> tuple[float, list[Tensor]]:
        """L, summed over batches in float64, and its gradient at the scratch parameters, from the same forwards.

        ``batches``: indices of those to average over; ``None`` for all.
        """
        self.evaluations += 1
        weights = self.objective.batch_weights
        chosen = range(len(weights)) if batches is None else batches
        terms = self.objective.samples if batches is None else math.fsum(weights[index] for index in chosen)
        parameters = dict(self.module.model.named_parameters())
        moved = [parameters[name] for name in self.objective.names]
        before = {name: parameter.requires_grad for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in self.objective.names)  # of the others nothing is stored for the backward pass
        total, value = [torch.zeros_like(tensor) for tensor in moved], 0.0
        with torch.enable_grad():
            for index in chosen:
                loss, weight = self.batch_loss(index)[0], weights[index]
                parts = torch.autograd.grad(loss, moved, allow_unused=True)
                value += weight * float(loss.detach())
                for sum_, part in zip(total, parts, strict=True):
                    if part is not None:
                        sum_.add_(part.detach(), alpha=weight / terms)
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
        return value / terms, total

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the private model's buffers."""
        return {name: buffer.clone() for name, buffer in self.module.model.named_buffers()}


def _wants_gradients(error: Exception) -> bool:
    """Whether an error is what torch raises where something is differentiated while gradients are off."""
    return isinstance(error, RuntimeError) and "require grad" in str(error)


def check_scalar(value: object, argument: str) -> None:
    """Raise unless ``value`` is a 0-dim floating-point tensor."""
    if not isinstance(value, Tensor):
        number = isinstance(value, (int, float))
        remedy = (
            "do not call .item()" if number else f"{'name' if value is None else 'take'} the tensor of the loss in its return"
        )
        raise TypeError(f"{argument} must return a 0-dim floating-point tensor, got {type(value).__name__}; {remedy}")
    if value.ndim or not value.is_floating_point():
        raise ValueError(
            f"{argument} must return a 0-dim floating-point tensor, got shape {tuple(value.shape)} of {value.dtype}; "
            "take the mean over the batch"
        )


def _versions(tensors: Sequence[Tensor]) -> list[int | None]:
    """Number of writes into each tensor; ``None`` for inference tensors, which nobody may write into."""
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same numbers, NaN beside NaN."""
    pairs = zip(strided(one), strided(other), strict=True)
    return all(torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs)
