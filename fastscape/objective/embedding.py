"""Embeddings whose gradient torch alters: rows left out of it, or divided by how often they occur."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastscape._creation import FunctionMode


def backward_nodes(tensor: Tensor) -> Iterator[Any]:
    """The nodes of a tensor's autograd graph, each once."""
    pending: list[Any] = [tensor.grad_fn]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        pending += [following for following, _ in node.next_functions]


def has_altered_gradient(model: nn.Module) -> bool:
    """Whether a layer has rows that its gradient leaves out (``padding_idx``) or scales (``scale_grad_by_freq``)."""
    layers = (layer for layer in model.modules() if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)))
    return any(
        layer.scale_grad_by_freq or (isinstance(layer, nn.Embedding) and layer.padding_idx is not None) for layer in layers
    )


def went_through_altered_gradient(loss: Tensor) -> bool:
    """Whether a loss was computed with such an embedding, of whatever layer or function."""
    for node in backward_nodes(loss):
        name = node.name()
        if name.startswith("EmbeddingBackward"):
            padding, rows = node._saved_padding_idx, node._saved_weight_sym_argsize_0
            if node._saved_scale_grad_by_freq or padding < rows:  # of none: -1, unsigned
                return True
        if name.startswith("EmbeddingBagBackward") and node._saved_scale_grad_by_freq:
            return True
    return False


class PlainEmbeddings(FunctionMode):
    """Embeddings as plain functions of their weights: values stay, and no row is left out of a gradient.

    The layers keep their ``padding_idx``, which models read to find padding. That of an embedding bag is part of its values (the
    rows are left out of its sums) and stays.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function is F.embedding:
            keywords = keywords | {"padding_idx": None, "scale_grad_by_freq": False}
            arguments = arguments[:2]
        elif function is F.embedding_bag:
            keywords = keywords | {"scale_grad_by_freq": False}
        elif function is torch.embedding:
            arguments, keywords = arguments[:2], {name: keywords[name] for name in ("weight", "indices") if name in keywords}
        return function(*arguments, **keywords)
