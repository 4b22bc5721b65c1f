"""Losses of single samples behind an objective's mean, and how many of them are classified correctly."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fastscape.evaluation.points import Array
from fastscape.objective.criteria import SameShape, criterion_options
from fastscape.objective.replica import Replica, placed_criterion

_ULPS = 64  # of the loss's dtype by which the mean of the samples may differ from the criterion's own


class SampleLosses:
    r"""Splits each batch's loss into its samples', where the criterion can be asked for them.

    .. math:: L = \sum_i \omega_i \ell_i \Big/ \sum_i \omega_i

    A sample is an index of the first dimension of the targets: terms of one sample (tokens, pixels) are averaged with the weights
    of the criterion's own mean (class weights, ignored targets), and :math:`\omega_i` is the sample's share of the objective's
    weight. Criteria that take ``reduction="none"`` can be split: functions and modules of ``torch.nn``, and others with such an
    argument. The split is checked: where the mean is not the criterion's own, the batches take the place of the samples.

    Args:
        replica: evaluated once at the objective's weights.
        accuracy: count correct classifications where the task is classification.

    Attributes:
        unit: ``"samples"``, or ``"batches"`` where samples are not known.
        weights: :math:`\omega`, float64 ``[N]``.
        targets: number of targets that are counted in an accuracy; 0 without one.
        origin: mean losses of the batches at the objective's weights ``[batches]``, and losses of samples there ``[N]``, or
            ``None``: with the bits that further evaluations give.

    Cost: one evaluation of the replica.
    """

    def __init__(self, replica: Replica, *, accuracy: bool = True) -> None:
        objective = replica.objective
        self._replica = replica
        self._ignored = criterion_options(objective.criterion)[1]
        self._unreduced = _unreduced(objective.criterion)
        if self._unreduced is not None:
            self._unreduced = placed_criterion(self._unreduced, objective.device, replica.dtype)
        self._shares: list[Tensor] = []  # per batch: weight of each sample within the criterion's mean
        self._divisors: list[Tensor] = []  # per batch: sum of those weights over a sample's terms, 1 where that is zero
        self._classes: list[Tensor | None] = []  # per batch: targets that are not ignored, or None without classes
        self._shared = _shared(objective.criterion, replica) if self._unreduced is not None else None
        replica.reset()
        replica.evaluations += 1
        batches, self._found = list[float](), list[Tensor]()
        for index in range(len(replica.batches)):
            loss, outputs = replica.batch_loss(index)
            batches.append(float(loss))
            if self._unreduced is not None and not self._splits(loss, outputs, index):
                self._unreduced = self._shared = None
            if self._shared is not None and not self._same(loss, outputs, index):
                self._shared = None
            self._classes.append(self._kept(outputs, index) if accuracy else None)
        if any(kept is None for kept in self._classes):
            self._classes = [None] * len(self._classes)
        if self._shared is not None:
            replica.take_criterion(self._shared)
        self.targets = sum(int(kept.sum()) for kept in self._classes if kept is not None)
        self.unit = "batches" if self._unreduced is None else "samples"
        if self.unit == "samples":
            parts = zip(objective.batch_weights, self._shares, strict=True)
            self.weights: Array = np.concatenate([weight * share.cpu().numpy() for weight, share in parts])
        else:
            self.weights = np.array(objective.batch_weights, dtype=np.float64)
        samples = None if self._unreduced is None else np.concatenate([each.detach().cpu().numpy() for each in self._found])
        self.origin: tuple[Array, Array | None] = np.array(batches), samples
        del self._found

    def split(self, outputs: Tensor | None, index: int) -> Tensor | None:
        """Losses of a batch's samples, float64 ``[n]``; ``None`` where the batch is the unit. Works under ``vmap``."""
        if self._unreduced is None or outputs is None:
            return None
        targets = self._replica.batches[index][1]
        terms: Tensor | None = None if self._shared is None else self._shared.taken(outputs)
        return self._by_sample(self._unreduced(outputs, targets) if terms is None else terms, index)

    def correct(self, outputs: Tensor | None, index: int) -> Tensor | None:
        """Number of a batch's targets that are classified correctly, 0-dim; ``None`` without classes. Works under ``vmap``."""
        hits = self.hits(outputs, index)
        return None if hits is None else hits.sum()

    def hits(self, outputs: Tensor | None, index: int) -> Tensor | None:
        """Number of targets of each of a batch's samples that are classified correctly ``[n]``; ``None`` without classes."""
        kept = self._classes[index]
        if kept is None or outputs is None:
            return None
        hits: Tensor = (outputs.argmax(1) == self._replica.batches[index][1]) & kept
        return hits.flatten(1).sum(1) if hits.ndim > 1 else hits.long()

    def counts(self) -> NDArray[np.int64]:
        """Targets of every sample that are counted in an accuracy ``[N]``."""
        kept = [classes.flatten(1).sum(1) if classes.ndim > 1 else classes for classes in self._classes if classes is not None]
        return np.concatenate([count.long().cpu().numpy() for count in kept]) if kept else np.zeros(0, np.int64)

    def shares(self, index: int) -> Array:
        """Weights of a batch's samples in its mean, float64 ``[n]``; they add up to 1."""
        found: Array = self._shares[index].cpu().numpy()
        return found

    def at_points(self, outputs: Tensor, index: int, block: slice) -> tuple[Tensor, Tensor | None]:
        """:meth:`split` and :meth:`correct` for outputs ``[p, n, ...]`` of a block of a batch's samples at p points.

        Cross-entropies of class targets take all points in one call with the classes in front of the samples: torch's softmax
        and argmax over a few neighbouring elements are 20 times slower.

        Returns:
            losses, float64 ``[p, n]``, and numbers of correct classifications, int64 ``[p]``, or ``None`` without classes.
        """
        assert self._unreduced is not None
        targets, kept = self._replica.batches[index][1][block], self._classes[index]
        kept = None if kept is None else kept[block]
        if not self._many(outputs, targets):
            terms = torch.vmap(self._unreduced, in_dims=(0, None))(outputs, targets)
            if terms.ndim > 2:
                terms = terms.double().flatten(2).sum(2)
            hits = None if kept is None else ((outputs.argmax(2) == targets) & kept).flatten(1).sum(1)
        else:
            rows = outputs.mT.contiguous()
            terms = self._unreduced(rows, targets.expand(len(rows), -1))
            hits = None if kept is None else _hits(rows, targets, kept)
        return terms.double() / self._divisors[index][block], hits

    def _many(self, outputs: Tensor, targets: Tensor) -> bool:
        """Whether outputs ``[p, n, classes]`` have a class target for each sample."""
        classes = criterion_options(self._replica.objective.criterion)[0]
        return classes and outputs.ndim == 3 and targets.ndim == 1 and not targets.is_floating_point()

    def _by_sample(self, terms: Tensor, index: int) -> Tensor:
        if terms.ndim > 1:
            terms = terms.double().flatten(1).sum(1)
        return terms.double() / self._divisors[index]

    # ------------------------------------------------------------------ setting up

    def _splits(self, loss: Tensor, outputs: Tensor | None, index: int) -> bool:
        """Set up one batch; whether the weighted mean of its samples is the criterion's mean, up to rounding."""
        assert self._unreduced is not None
        targets = self._replica.batches[index][1]
        try:
            terms = self._unreduced(outputs, targets)
        except (TypeError, ValueError, RuntimeError, NotImplementedError):  # whatever a criterion does with another reduction
            return False
        if not isinstance(terms, Tensor) or not terms.ndim or not isinstance(targets, Tensor) or not targets.ndim:
            return False
        if len(terms) != len(targets) or not len(terms):
            return False
        sums = self._term_weights(terms, targets)
        total = float(sums.sum())
        if not total > 0:
            return False
        self._divisors.append(torch.where(sums == 0, 1.0, sums))
        self._shares.append(sums / total)
        losses = self._by_sample(terms, index)
        self._found.append(losses)
        mean, size = self._shares[index] @ losses, float((self._shares[index] * losses.abs()).sum())
        allowed = _ULPS * torch.finfo(loss.dtype).eps * (size if np.isfinite(size) else 1.0)
        return torch.allclose(mean, loss.double(), rtol=0.0, atol=allowed, equal_nan=True)

    def _same(self, loss: Tensor, outputs: Tensor | None, index: int) -> bool:
        """Whether the shared criterion gives the mean and the terms of the objective's, bit for bit."""
        assert self._shared is not None
        assert self._unreduced is not None
        targets = self._replica.batches[index][1]
        mean = self._shared(outputs, targets)  # type: ignore[arg-type]
        terms, expected = self._shared.taken(outputs), self._unreduced(outputs, targets)
        return terms is not None and all(
            a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
            for a, b in ((mean, loss), (terms, expected))
        )

    def _term_weights(self, terms: Tensor, targets: Tensor) -> Tensor:
        """Sum over each sample's terms of the weights that the criterion's mean divides by, float64 ``[n]``."""
        classes, ignored, class_weight = criterion_options(self._replica.objective.criterion)
        if classes and not targets.is_floating_point():
            kept = targets != ignored
            weights = kept.double()
            if class_weight is not None:
                weights = weights * class_weight.to(targets.device).double()[torch.where(kept, targets, 0)]
            return weights.reshape(len(weights), -1).sum(1)
        each = terms.numel() / len(terms)
        return torch.full((len(terms),), each, dtype=torch.float64, device=terms.device)

    def _kept(self, outputs: Tensor | None, index: int) -> Tensor | None:
        batch = self._replica.batches[index]
        if self._replica.objective.criterion is None or outputs is None or not isinstance(batch[1], Tensor):
            return None
        targets = batch[1]
        if targets.is_floating_point() or targets.is_complex():
            return None
        if outputs.ndim != targets.ndim + 1 or outputs.shape[0] != targets.shape[0]:
            return None
        return targets != self._ignored


def _hits(rows: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
    """Correct classifications ``[p]`` of outputs ``[p, classes, n]``, which are overwritten."""
    places = torch.where(kept, targets, 0).expand(len(rows), 1, -1)
    wanted = rows.gather(1, places)
    others = rows.scatter_(1, places, -torch.inf).amax(1, keepdim=True)
    found = wanted > others
    if not bool((found | (wanted < others)).all()):  # ties and NaN
        found = rows.scatter_(1, places, wanted).argmax(1, keepdim=True) == places
    return (found & kept).sum((1, 2))


def standard_errors(parts: Array, weights: Array) -> Array:
    r"""Standard errors of weighted means over samples that are drawn independently.

    .. math:: \hat\sigma^2 = \frac{N}{N - 1} \frac{\sum_i \omega_i^2 (\ell_i - L)^2}{(\sum_i \omega_i)^2}

    the linearised variance of a ratio (Cochran, Sampling Techniques, 1977, section 6.3); for equal weights :math:`s^2 / N`.

    Args:
        parts: losses ``[P, N]``.
        weights: ``[N]``; entries of weight 0 do not count.

    Returns:
        ``[P]``; NaN for fewer than two samples of positive weight, or where a loss is not finite.
    """
    used = weights > 0
    number = int(used.sum())
    if number < 2:
        return np.full(len(parts), np.nan)
    share = weights[used] / weights[used].sum()
    kept = parts[:, used] if number < len(used) else parts
    with np.errstate(invalid="ignore", over="ignore"):
        residuals = share * (kept - (kept @ share)[:, None])
        found: Array = np.sqrt(number / (number - 1) * np.einsum("pn,pn->p", residuals, residuals))
    return found


class _SharedCrossEntropy:
    """Cross-entropy whose mean and terms come from one log-softmax, which takes 190 of a digit MLP's 870 us a point."""

    def __init__(self, weight: Tensor | None, ignored: int) -> None:
        self._weight, self._ignored = weight, ignored
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean; the terms are kept until they are taken."""
        logs = F.log_softmax(outputs, 1)
        self._last = outputs, F.nll_loss(logs, targets, self._weight, ignore_index=self._ignored, reduction="none")
        return F.nll_loss(logs, targets, self._weight, ignore_index=self._ignored)

    def taken(self, outputs: Tensor | None) -> Tensor | None:
        """The terms of the last call, if it was for these outputs."""
        last, self._last = self._last, None
        return last[1] if last is not None and last[0] is outputs else None


def _shared(criterion: Any, replica: Replica) -> _SharedCrossEntropy | None:
    """For plain cross-entropy of class indices; the caller compares it with the criterion."""
    keywords = criterion.keywords if isinstance(criterion, partial) else {}
    function = criterion.func if isinstance(criterion, partial) else criterion
    plain = function is F.cross_entropy or type(function) is nn.CrossEntropyLoss
    smoothing = keywords.get("label_smoothing", getattr(function, "label_smoothing", 0.0))
    indices = all(isinstance(b[1], Tensor) and not b[1].is_floating_point() and b[1].ndim > 0 for b in replica.batches)
    if not plain or smoothing or not indices or (isinstance(criterion, partial) and criterion.args):
        return None
    _, ignored, weight = criterion_options(criterion)
    placed_weight = None if weight is None else weight.to(replica.objective.device, replica.dtype)
    return _SharedCrossEntropy(placed_weight, ignored)


def _unreduced(criterion: Any) -> Any:
    """The criterion with ``reduction="none"``, or ``None`` where it takes no such argument."""
    if isinstance(criterion, SameShape):
        return _unreduced(criterion.criterion)  # the guard has done its work in the criterion itself
    if isinstance(criterion, nn.Module):
        if getattr(criterion, "reduction", None) != "mean":
            return None
        changed = copy.deepcopy(criterion)
        changed.reduction = "none"  # type: ignore[assignment]
        return changed
    function = criterion.func if isinstance(criterion, partial) else criterion
    args, keywords = (criterion.args, criterion.keywords) if isinstance(criterion, partial) else ((), {})
    function = function.criterion if isinstance(function, SameShape) else function
    if keywords.get("reduction", "mean") != "mean" or not _takes_reduction(function):
        return None
    return partial(function, *args, **{**keywords, "reduction": "none"})


def _takes_reduction(function: Any) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return False
