"""What a sample of a batch is, and batches cut into samples or regrouped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastscape._batches import Batch, map_tensors, tensors_of
from fastscape.objective import Objective


def sample_count(batch: Batch) -> int:
    """Samples of a batch: the leading dimension of its first tensor that has one (a sentence, not a token); 1 without."""
    first = next((tensor for tensor in tensors_of(batch) if tensor.ndim), None)
    return int(first.shape[0]) if first is not None else 1


def split_rows(batch: Batch, count: int) -> list[bool]:
    """For every tensor of a batch of ``count`` samples, in order: whether it has a row per sample, or is shared by all."""
    return [tensor.ndim > 0 and tensor.shape[0] == count for tensor in tensors_of(batch)]


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Samples ``start`` to ``stop`` of a batch; tensors without a row per sample are shared by all parts."""
    count = sample_count(batch)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[start:stop] if tensor.ndim and tensor.shape[0] == count else tensor

    return map_tensors(batch, cut)


def groups_of(objective: Objective, size: int) -> list[Objective]:
    """The objective on consecutive groups of ``size`` samples, the last of them smaller; groups without terms are left out.

    A group may span batches; batches that lie whole within one stay whole, so that ``size`` of all samples gives the objective.
    """
    found, pieces, room = [], list[Batch](), size
    for batch in objective.batches:
        count, start = sample_count(batch), 0
        while start < count:
            stop = min(count, start + room)
            pieces.append(batch if stop - start == count else part(batch, start, stop))
            room, start = room - (stop - start), stop
            if not room:
                found.append(pieces)
                pieces, room = [], size
    if pieces:
        found.append(pieces)
    return [objective.of(group) for group in found if has_terms(objective, group)]


def has_terms(objective: Objective, batches: Sequence[Batch]) -> bool:
    """Whether any of the batches has terms of the loss: a sequence of ignored targets has none."""
    return any(objective.terms(batch) != 0 for batch in batches)


def samples_of(objective: Objective) -> int:
    """Samples of all batches (see :func:`sample_count`)."""
    return sum(sample_count(batch) for batch in objective.batches)
