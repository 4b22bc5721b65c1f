"""Samples of batches: their definition, and batches cut into samples or regrouped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastscape.objective.batches import Batch
from fastscape.objective.objective import Objective
from fastscape.objective.structures import leaves, map_tensors, substituted, tensors_of
from fastscape.objective.terms import labels_of


def rows_of(objective: Objective, batch: Batch) -> int:
    """Samples that a batch can be cut into: its :meth:`Objective.count`, or 1 where rows of its tensors are not samples.

    They are where labels and the largest tensor have one row per sample, and so has every tensor of integers: those of another
    length may be edges of a graph or lengths. Packed sequences are cut by their own count; nested and sparse tensors, and
    lists of samples, are not.
    """
    count, labels, packed = objective.count(batch), labels_of(batch), leaves(batch, PackedSequence)
    tensors = [tensor for tensor in tensors_of(batch) if id(tensor) not in _ids_within(packed)]
    if count < 2 or not (tensors or packed) or any(_is_list(part, count) for part in _parts(batch)):
        return 1
    if any(tensor.is_nested or tensor.layout != torch.strided for tensor in tensors):
        return 1
    if any(int(each.batch_sizes[0]) != count for each in packed):
        return 1
    whole = [labels] if isinstance(labels, Tensor) and labels.ndim else []
    whole += [] if packed else [max(tensors, key=Tensor.numel)]
    whole += [tensor for tensor in tensors if tensor.ndim and len(tensor) > 1 and not tensor.is_floating_point()]
    return count if all(tensor.ndim and len(tensor) == count for tensor in whole) else 1


def _parts(batch: Batch) -> list[object]:
    return [*batch] if isinstance(batch, (tuple, list)) else [*batch.values()] if isinstance(batch, Mapping) else []


def _is_list(part: object, count: int) -> bool:
    """Whether a part of a batch is a list with one item, of tensors, per sample."""
    return isinstance(part, list) and len(part) == count and bool(tensors_of(part))


def split_rows(batch: Batch, count: int) -> list[bool]:
    """For every tensor of a batch of ``count`` samples, in order: whether it has a row per sample, or is shared by all."""
    return [tensor.ndim > 0 and tensor.shape[0] == count for tensor in tensors_of(batch)]


def part(batch: Batch, count: int, start: int, stop: int) -> Batch:
    """Samples ``start`` to ``stop`` of a batch of ``count``; tensors without a row per sample are shared by all parts."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[start:stop] if tensor.ndim and tensor.shape[0] == count else tensor

    packed = leaves(batch, PackedSequence)
    if not packed:
        return map_tensors(batch, cut)
    others = [tensor for tensor in tensors_of(batch) if id(tensor) not in _ids_within(packed)]
    memo: dict[int, object] = {id(tensor): cut(tensor) for tensor in others}
    return substituted(batch, memo | {id(each): _sequences(each, start, stop) for each in packed})


def _sequences(packed: PackedSequence, start: int, stop: int) -> PackedSequence:
    """Sequences ``start`` to ``stop`` of a packed batch."""
    padded, lengths = pad_packed_sequence(packed)
    longest = int(lengths[start:stop].max())
    return pack_padded_sequence(padded[:longest, start:stop], lengths[start:stop], enforce_sorted=False)


def _ids_within(packed: Sequence[PackedSequence]) -> set[int]:
    return {id(tensor) for each in packed for tensor in tensors_of(each)}


def groups_of(objective: Objective, size: int) -> list[Objective]:
    """The objective on consecutive groups of ``size`` samples, the last of them smaller; groups without terms are left out.

    A group may span batches; batches that lie whole within one stay whole, so that ``size`` of all samples gives the objective.
    A batch that cannot be cut is whole in its group, which may thereby be larger.
    """
    found, pieces, room = [], list[Batch](), size
    for batch in objective.batches:
        count, start = objective.count(batch), 0
        cut = rows_of(objective, batch) == count
        while start < count:
            stop = min(count, start + room) if cut else count
            pieces.append(batch if stop - start == count else part(batch, count, start, stop))
            room, start = room - (stop - start), stop
            if room <= 0:
                found.append(pieces)
                pieces, room = [], size
    if pieces:
        found.append(pieces)
    return [objective.of(group) for group in found if has_terms(objective, group)]


def has_terms(objective: Objective, batches: Sequence[Batch]) -> bool:
    """Whether any of the batches has terms of the loss: a sequence of ignored targets has none."""
    return any(objective.terms(batch) != 0 for batch in batches)


def samples_of(objective: Objective) -> int:
    """Samples of all batches (see :meth:`Objective.count`)."""
    return sum(objective.count(batch) for batch in objective.batches)
