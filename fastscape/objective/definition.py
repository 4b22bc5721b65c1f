"""Definition of an objective: model, data, loss, weights and arithmetic, checked; nothing here evaluates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Never, Self

import torch
from torch import Tensor, nn

from fastscape._checks import check_memory, integer, noted
from fastscape.objective.arguments import (
    Select,
    check_batch_norm,
    check_dtype,
    check_loss_and_weight,
    check_named,
    check_pairs,
    checked_device,
    checked_model,
    matched_state,
    selected,
)
from fastscape.objective.batches import Batch, fingerprint, materialise, placed
from fastscape.objective.criteria import (
    Criterion,
    Output,
    check_output,
    checked_criterion,
    checked_loss,
    criterion_options,
    ignored_targets,
    is_known_mean,
    terms,
    weight_of,
)
from fastscape.objective.norms import BatchNormMode, frozen, tracking
from fastscape.objective.sharding import ShardedModelError, Sharding, needs_whole, settle, sharding_of, whole
from fastscape.objective.structures import map_tensors, tensors_of
from fastscape.objective.terms import Rule, Weighting, sample_guess, weighting

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass
class Traits:
    """Knowledge of an objective's model and loss from running them; its copies share it.

    Attributes:
        differentiates: whether they take derivatives themselves (a physics-informed loss, forces, a gradient penalty), so that
            they run with gradients on; ``None`` before the first evaluation.
        leaves: for every tensor of a batch, whether it required gradients when it was read.
        checkpoints: whether activations are checkpointed in the reentrant way; ``None`` before the first gradient.
    """

    differentiates: bool | None = None
    leaves: tuple[bool, ...] = ()
    checkpoints: bool | None = None


class Definition:
    """An objective as far as its replicas need it; for the arguments and their errors see :class:`fastscape.Objective`.

    Attributes:
        traits: learnt of model and loss while they run, shared with what is derived from this.
        known: of the function, found once by probes and shared likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Batch],
        *unnamed: Never,
        criterion: Criterion | None = None,
        loss: Loss | None = None,
        output: Output | None = None,
        weight: Callable[[Batch], float] | None = None,
        samples: int | Callable[[Batch], int] | None = None,
        params: Select = None,
        batch_norm: BatchNormMode | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        memory: int | None = None,
    ) -> None:
        check_named(unnamed)
        self.model = checked_model(model)
        self.sharding = sharding_of(self.model)
        check_loss_and_weight(criterion, loss, weight)
        check_output(output, loss)
        check_memory(memory)
        if batch_norm is not None:
            check_batch_norm(batch_norm)
        check_dtype(dtype)
        if samples is not None and not callable(samples):
            samples = integer("samples", samples, 1)
        self.criterion = None if criterion is None else checked_criterion(criterion)
        self.output = output
        self.user_loss = None if loss is None else checked_loss(loss)
        self.batch_norm_asked, self.batch_norm = batch_norm, batch_norm or "running"
        self.tracking, self._frozen = tuple(tracking(self.model)), frozen(self.model)
        self.names = selected(self.model, params)
        self.known: dict[Any, Any] = {}
        self._state: Mapping[str, Tensor] | None = None
        self.dtype = dtype or reduce(torch.promote_types, (tensor.dtype for tensor in self._source))
        self.device = checked_device(self.model, device)
        _check_sharded(self, self.sharding)
        batches = materialise(data, memory)
        self.traits = Traits(leaves=tuple(tensor.requires_grad for tensor in tensors_of(batches[0])))
        self.batches = self._checked_batches(batches, move=device is not None)
        self._user_weight, self._user_samples = weight, samples
        self.weighting = self._weighting()
        self.batch_weights = tuple(self._weight(index) for index in range(len(self.batches)))
        _check_equal(self, self.sharding)

    @property
    def base(self) -> dict[str, Tensor]:
        """The probed parameters by name, in the objective's dtype and on its device (views where possible)."""
        return {name: tensor.detach().to(self.device, self.dtype) for name, tensor in zip(self.names, self._source, strict=True)}

    @property
    def size(self) -> int:
        """D, the number of probed parameters."""
        return sum(self.model.get_parameter(name).numel() for name in self.names)

    @property
    def norm(self) -> float:
        """||w||, the Euclidean norm of the probed parameters, accumulated in float64."""
        with torch.no_grad():
            return math.sqrt(
                math.fsum(float(whole(tensor).to(torch.float64, copy=True).square_().sum()) for tensor in self.base.values())
            )

    @property
    def samples(self) -> float:
        """Total weight of the data: samples, or terms of the mean (see ``weight``)."""
        return math.fsum(self.batch_weights)

    @property
    def state(self) -> Mapping[str, Tensor] | None:
        """The state dict set by :meth:`at`, or ``None`` while the model's own weights are used."""
        return self._state

    # ------------------------------------------------------------------ derived from it

    def at(self, state: Mapping[str, Tensor]) -> Self:
        """The same function with the weights and buffers of ``state``, a state dict of this model.

        Raises:
            ValueError: missing or extra keys or wrong shapes; the first few are listed.
        """
        _refuse_sharded(self, "other weights than its own (.at, trajectories)")
        other = self._copy()
        other._state = matched_state(self.model, state)
        return other

    def on(self, *batches: int) -> Self:
        """The same function on these batches alone, by number."""
        numbers = [integer("batch", batch, 0) for batch in batches]
        for batch in numbers:
            if batch >= len(self.batches):
                raise ValueError(f"batch must be below the number of batches, {len(self.batches)}, got {batch}")
        other = self._copy()
        other.batches, other.batch_weights = [self.batches[n] for n in numbers], tuple(self.batch_weights[n] for n in numbers)
        return other

    def of(self, batches: Sequence[Batch]) -> Self:
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

    def whole(self) -> Self:
        """The same function of every floating-point parameter, also those that were frozen or not selected."""
        other, parameters = self._copy(), self.model.named_parameters()
        other.names = tuple(name for name, tensor in parameters if tensor.is_floating_point() and tensor.numel())
        return other

    def cast(self, dtype: torch.dtype) -> Self:
        """The same function in the arithmetic of another floating dtype, at the weights as ``dtype`` holds them."""
        if dtype != self.dtype:
            _refuse_sharded(self, f"another dtype than its own {self.dtype}")
        other = self._copy()
        other.dtype = dtype
        return other

    def normalised(self, batch_norm: BatchNormMode) -> Self:
        """The same function with batch norm by ``"running"`` statistics or by those of each ``"batch"``, as if asked for."""
        check_batch_norm(batch_norm)
        other = self.switched(batch_norm)
        other.batch_norm_asked = batch_norm
        return other

    def switched(self, batch_norm: BatchNormMode) -> Self:
        """The same function by other statistics, where what was asked for stays what it is."""
        if batch_norm == "batch":
            _refuse_sharded(self, "batch_norm='batch'")
        other = self._copy()
        other.batch_norm = batch_norm
        return other

    # ------------------------------------------------------------------ batches and weights

    @property
    def by_batch(self) -> tuple[str, ...]:
        """Layers that ``"batch"`` statistics concern, by name; none of a sharded model, which is evaluated as it is."""
        kept = self.tracking if self.sharding is None else ()
        return tuple(name for name in kept if self.batch_norm_asked is not None or name not in self._frozen)

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
            with noted(f"raised by samples= on a batch of type {type(batch).__name__}"):
                return integer("samples(batch)", self._user_samples(batch), 0)
        return self._user_samples

    def says_sum(self, batch: Batch, twice: Batch) -> bool:
        """Whether losses of batches may be sums: the given weight is that of every sample twice, or batches are of one sample."""
        if self._user_weight is None:
            return all(self.count(each) == 1 for each in self.batches)
        try:
            return weight_of(self._user_weight, batch, 0) == weight_of(self._user_weight, twice, 0)
        except Exception:  # a weight that takes no other batch
            return False

    def data_fingerprint(self) -> str:
        """SHA-256 of the data: dtypes, shapes and bytes of every tensor of every batch, in order."""
        return fingerprint((str(index), batch) for index, batch in enumerate(self.batches))

    def weight_fingerprint(self) -> str:
        """SHA-256 of all parameters and buffers: names, dtypes, shapes and bytes."""
        settle(self.sharding)
        state = sorted(matched_state(self.model, self._state or self.model.state_dict()).items())
        return fingerprint((name, whole(tensor)) for name, tensor in state)

    # ------------------------------------------------------------------ private

    @property
    def _source(self) -> list[Tensor]:
        settle(self.sharding)  # after a forward, the root's parameters are the gathered ones, and may be displaced
        tensors = self._state if self._state is not None else dict(self.model.named_parameters())
        return [tensors[name] for name in self.names]

    def _copy(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def _checked_batches(self, batches: list[Batch], *, move: bool) -> list[Batch]:
        if self.criterion is not None:
            check_pairs(batches, self.criterion)
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
            own = Rule("terms of the criterion", partial(_terms_of, criterion, self.count))
            if is_known_mean(criterion) or criterion_options(criterion)[0]:
                return Weighting(own)
            for batch in self.batches:
                own.count(batch)  # refuses targets whose ignored ones it hides
        return weighting(self.model, self.batches, self.count, own, self._confirmed)

    def _confirmed(self, index: int, counts: Sequence[Callable[[Batch], float]]) -> Sequence[bool] | None:
        """Ways to count that make the loss of a batch the mean of its halves'; ``None`` where no two differ."""
        raise NotImplementedError

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


def _terms_of(criterion: Criterion, count: Callable[[Batch], int], batch: Batch) -> float:
    return terms(criterion, batch[1], count(batch))


def _refuse_sharded(objective: Definition, what: str) -> None:
    """Refuse what a model that is evaluated in place cannot have."""
    if objective.sharding is not None:
        raise needs_whole(what)


def _check_sharded(objective: Definition, sharding: Sharding | None) -> None:
    """Refuse another dtype, device or batch norm than a sharded model has."""
    if sharding is None:
        return
    dtypes = {tensor.dtype for tensor in objective._source}
    if dtypes != {objective.dtype}:
        raise ShardedModelError(
            f"dtype must be the one dtype of the sharded model's parameters, or None, got {objective.dtype} for "
            f"{', '.join(sorted(map(str, dtypes)))}; call model.double() or .float() before its first forward"
        )
    if objective.device != checked_device(objective.model, None):
        raise ShardedModelError(f"device must be that of the sharded model, or None, got {objective.device}; move the model")
    if objective.batch_norm == "batch":
        raise needs_whole("batch_norm='batch'")


def _check_equal(objective: Definition, sharding: Sharding | None) -> None:
    """Refuse processes that hold other parameters, data or weights of batches than the others."""
    if sharding is not None:
        identity = {"names": repr(objective.names), "batch weights": repr(objective.batch_weights)}
        sharding.check_equal({"data": objective.data_fingerprint(), **identity})
