"""A torch module, a loss and data, as a pure function of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Self, TypeVar

import torch
from torch import Tensor

from fastscape._state import exact_arithmetic
from fastscape.objective.arguments import Select as Select
from fastscape.objective.arguments import matched_state as matched_state
from fastscape.objective.batches import Batch
from fastscape.objective.criteria import Criterion as Criterion
from fastscape.objective.definition import Definition
from fastscape.objective.definition import Loss as Loss
from fastscape.objective.examination import Findings, confirmed, findings, forget, replica_of, still_replica
from fastscape.objective.norms import BatchNormMode
from fastscape.objective.replica import Replica
from fastscape.objective.sharding import needs_whole
from fastscape.objective.statistics import Statistics, compared, unmoved
from fastscape.objective.write_guard import SharedWriteError

Found = TypeVar("Found")


class Objective(Definition):
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
            wrappers are taken off. One that FSDP2 (``fully_shard``) or DTensor shards is evaluated in place and restored bit for
            bit; all processes make the same calls and hold all batches, which are dealt to them. :func:`fastscape.losses`,
            ``responses``, ``multifractal`` and ``spectrum`` take it.
        data: iterable of batches, read once and kept (see ``memory``).
        criterion: ``criterion(model(inputs), targets) -> scalar``, a mean over the batch, for batches
            ``(inputs, targets)``; a tuple of inputs is passed as ``model(*inputs)``, a mapping as ``model(**inputs)``.
        loss: ``loss(model, batch) -> scalar mean`` for everything else; it must use the ``model`` it is given.
        output: what the criterion takes of what the model returns: a name such as ``"logits"`` (a key or an attribute), or a
            function of it; ``None`` for all of it.
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

    Cost: nothing between calls but the data. A loss and a gradient at w share the weights with the model; calls that displace
    them take a copy while they run.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> data = [(torch.ones(2, 4), torch.tensor([0, 2]))]
        >>> objective = fs.Objective(model, data, criterion=torch.nn.functional.cross_entropy)
        >>> objective.size, objective.names
        (15, ('weight', 'bias'))
    """

    _statistics: tuple[str, Statistics] | None = None

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
        return self._at_w(lambda replica: replica.loss_and_accuracy())

    def gradient(self) -> dict[str, Tensor]:
        """Gradient of L with respect to the probed parameters, by name. Cost: one forward and backward per batch.

        Of a sharded model, tensors that are sharded as the parameters are.
        """
        parts = dict(zip(self.names, self._at_w(lambda replica: replica.gradient()), strict=True))
        if self.sharding is None:
            return parts
        return {name: self.sharding.like(name, part) for name, part in parts.items()}

    def replica(self, dtype: torch.dtype) -> Replica:
        """A private copy of the model and data in ``dtype``, whose parameters are scratch space."""
        return replica_of(self, dtype)

    def trained(self) -> Objective:
        """The function that training lowers: by the statistics of each batch, unless others were asked for.

        Layers that a model in training mode keeps in evaluation mode are taken as frozen, with their running statistics. Where
        the batch's are undefined (a single value per channel) it is this objective itself.

        Cost: two forwards per batch at new weights.
        """
        if self.batch_norm_asked is not None or not self.by_batch:
            return self
        found = self.statistics()
        return self if found.failure or unmoved(self, found) else self.switched("batch")

    def statistics(self) -> Statistics:
        """L(w) by running statistics and by those of each batch, evaluated once at each weights."""
        key = self.weight_fingerprint()
        if self._statistics is None or self._statistics[0] != key:
            self._statistics = key, compared(self)
        return self._statistics[1]

    def switched(self, batch_norm: BatchNormMode) -> Self:
        """The same function by other statistics, where what was asked for stays what it is."""
        other = super().switched(batch_norm)
        other._statistics = self._statistics
        return other

    @property
    def findings(self) -> Findings:
        """Findings of the first evaluation; cost: that evaluation, once."""
        return findings(self)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on this function, in sentences: guesses, and what the forward was seen to do.

        Cost: none after the first evaluation.

        Raises:
            ValueError: the loss of a batch is a sum over its samples.
        """
        guess = (self.weighting.remark,) if self.weighting.remark else ()
        return (*guess, *self.findings.remarks)

    def _at_w(self, evaluate: Callable[[Replica], Found]) -> Found:
        """What ``evaluate`` gets from a replica at w, with parameters of its own where the forward writes into them."""
        with exact_arithmetic(self.dtype), self.held():
            replica = still_replica(self, self.dtype)
            replica.reset()
            try:
                return evaluate(replica)
            except SharedWriteError:
                forget(self)  # at earlier weights it did not
            replica = self.replica(self.dtype)
            replica.reset()
            return evaluate(replica)

    def held(self) -> AbstractContextManager[None]:
        """For as long as replicas of a sharded model, which is evaluated in place, displace its weights; nothing for others."""
        return nullcontext() if self.sharding is None else self.sharding.held(self.names)

    def _copy(self) -> Self:
        other = super()._copy()
        other._statistics = None  # of other data, or in another arithmetic
        return other

    def _confirmed(self, index: int, counts: Sequence[Callable[[Batch], float]]) -> list[bool] | None:
        return confirmed(self, index, counts)


def checked_objective(value: object, *, sharded: bool = False) -> Objective:
    """``value`` as an objective, or a TypeError that says how to make one; one of a sharded model only where that is allowed."""
    if not isinstance(value, Objective):
        raise TypeError(
            f"objective must be a fastscape.Objective, got {type(value).__name__}; make one of model, data and loss: "
            "fs.Objective(model, data, criterion=torch.nn.functional.cross_entropy)"
        )
    if value.sharding is not None and not sharded:
        raise needs_whole()
    return value


def untrained(objective: Objective) -> str:
    """Reason why the objective is not the function that training lowers; empty where it is."""
    if objective.batch_norm == "batch" or not objective.by_batch:
        return ""
    found = objective.statistics()
    if unmoved(objective, found):
        return ""
    if found.failure and objective.batch_norm_asked is None:
        return f"training used batch statistics, which these data do not give: {found.failure}"
    return "training used batch statistics; pass batch_norm='batch'"
