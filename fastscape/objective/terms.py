"""Samples and terms of a batch, where they are not given: by its labels, confirmed by a measurement."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastscape.objective.batches import Batch
from fastscape.objective.structures import tensors_of

IGNORED = -100  # torch's own, and that of Hugging Face
_LABELS = ("labels", "label", "targets", "target", "y")
_CAUSAL = re.compile(r"(CausalLM|(?<!With)LMHeadModel|DoubleHeadsModel)$")  # Hugging Face shifts the labels inside these

Confirm = Callable[[int, Sequence[Callable[[Batch], float]]], Sequence[bool] | None]


def labels_of(batch: Batch) -> Any:
    """The labels of a batch by their name as key, field or attribute; the last of several parts; ``None`` without."""
    for name in _LABELS:
        if isinstance(batch, Mapping):
            if name in batch:
                return batch[name]
        elif not isinstance(batch, Tensor) and getattr(batch, name, None) is not None:
            return getattr(batch, name)
    is_parts = isinstance(batch, (tuple, list)) and not isinstance(batch, PackedSequence) and len(batch) > 1
    return batch[-1] if is_parts else None


def sample_guess(batch: Batch) -> int:
    """Samples of a batch: rows of the labels, items of a list of labels or of inputs, or rows of the first tensor; 1 without."""
    parts: list[Any] = [labels_of(batch), batch[0] if isinstance(batch, (tuple, list)) and batch else None]
    for part in parts:
        if isinstance(part, Tensor) and part.ndim:
            return int(part.size(0))
        if isinstance(part, PackedSequence):
            return int(part.batch_sizes[0])
        if type(part) in (list, tuple) and len(part):
            return len(part)
    rows = next((tensor for tensor in tensors_of(batch) if tensor.ndim), None)
    return int(rows.size(0)) if rows is not None else 1


@dataclass(frozen=True)
class Rule:
    """Rule that counts batches, in words and as a function."""

    words: str
    count: Callable[[Batch], float]


@dataclass(frozen=True)
class Weighting:
    """The rule in force, and what is to be told of it.

    Attributes:
        rule: counts the terms of a batch.
        remark: for the results; empty where no other rule would give other numbers.
        sure: whether it was confirmed, or nothing hangs on it.
    """

    rule: Rule
    remark: str = ""
    sure: bool = True


def weighting(
    model: nn.Module, batches: Sequence[Batch], count: Callable[[Batch], float], default: Rule | None, confirm: Confirm
) -> Weighting:
    """The rule for the terms of batches whose loss does not state them.

    Samples, labels without ignored ones, and those that follow another (the labels of causal language models) are compared on
    the halves of a batch: the loss is the mean of theirs, weighted by the right counts. Batches that all rules weigh alike need
    none.

    Args:
        model: tells a causal language model.
        batches: of the objective.
        count: samples of a batch.
        default: taken where nothing hangs on the rule; ``None`` for samples.
        confirm: which counts the halves of a batch agree with, in order; ``None`` where it cannot be measured.
    """
    samples = Rule("their samples", count)
    labels = Rule("their labels, without those of -100", partial(_kept, count=count, skipped=0))
    shifted = Rule("their labels from the second position on, without those of -100", partial(_kept, count=count, skipped=1))
    causal = any(_CAUSAL.search(type(module).__name__) for module in model.modules())
    rules = [shifted, labels, samples] if causal else [labels, shifted, samples]
    if not _matters(batches, rules):
        rules = [default or samples]
        if len({rules[0].count(batch) for batch in batches}) == 1:
            return Weighting(rules[0])
    if len(batches) == 1:
        return Weighting(default or rules[0])
    contradicted = ""
    for index in range(len(batches)):
        agree = confirm(index, [rule.count for rule in rules])
        if agree is not None and any(agree):
            rule = rules[list(agree).index(True)]
            if len(rules) == 1:
                return Weighting(rule)
            words = f"batches are weighted by {rule.words}, as the halves of data[{index}] confirm; weight= says otherwise"
            return Weighting(rule, words)
        if agree is not None:
            contradicted = f" that the halves of data[{index}] do not confirm"
            break
    remedy = "pass weight=lambda batch: n, the number of terms in the mean of a batch, or samples="
    return Weighting(rules[0], f"batches are weighted by {rules[0].words}, a guess{contradicted}: {remedy}", sure=False)


def _matters(batches: Sequence[Batch], rules: Iterable[Rule]) -> bool:
    """Whether the shares of the batches depend on the rule, or labels are ignored."""
    if any(_ignores(labels_of(batch)) for batch in batches):
        return True
    shares = []
    for rule in rules:
        counts = np.array([rule.count(batch) for batch in batches])
        shares.append(counts / max(counts.sum(), 1))
    return any(not np.allclose(share, shares[0], rtol=1e-9, atol=0) for share in shares)


def _ignores(labels: Any) -> bool:
    return _is_classes(labels) and bool((labels == IGNORED).any())


def _is_classes(labels: Any) -> bool:
    return isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()


def _kept(batch: Batch, count: Callable[[Batch], float], skipped: int) -> float:
    """Labels that are not ignored, without the first ``skipped`` of every sequence; samples where there are no such labels."""
    labels = labels_of(batch)
    if not isinstance(labels, Tensor) or not labels.ndim or isinstance(batch, Tensor):
        return float(count(batch))
    if not _is_classes(labels):
        return float(labels.numel())
    kept = labels[..., skipped:] if labels.ndim > 1 else labels
    return float((kept != IGNORED).sum())
