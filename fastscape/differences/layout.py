"""Memory layout of images and their lanes: channels last, which convolutions on a CPU read without reordering.

A 3x3 convolution of 192 images of 128 channels ran at 208 GFLOP/s channels last and 146 as ``[N, C, H, W]``; one of 512 channels
to 4x4 pixels at 111 and 195, so that images of few pixels, or of few channels, stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastscape.differences.triple import LEAD, Triple

_LAST = torch.channels_last
_FEW, _MANY = 16, 32  # pixels, channels


def is_last(x: Tensor) -> bool:
    """Whether an image batch ``[N, C, H, W]`` lies channels last in memory."""
    return x.ndim == 4 and x.is_contiguous(memory_format=_LAST) and not x.is_contiguous()


def image_format(image: Tensor) -> torch.memory_format:
    """The layout in which convolutions on this device that give such an image are fastest."""
    last = image.ndim == 4 and image.device.type == "cpu" and image.shape[1] >= _MANY and image.shape[2:].numel() > _FEW
    return torch.channels_last if last else torch.contiguous_format


def stacked(images: list[Tensor]) -> Tensor:
    """Images of equal layout along a new first axis, in that layout."""
    if not is_last(images[0]):
        return torch.stack(images)
    return torch.stack([image.permute(0, 2, 3, 1) for image in images]).permute(0, 1, 4, 2, 3)


def widened(lanes: Tensor, radii: int) -> Tensor:
    """Lanes to add to: with b, and for this many radii, in the same layout."""
    if lanes.shape[1] == 2 and lanes.shape[2] == radii:
        return lanes
    order = (0, 1, 2, 3, 5, 6, 4) if lanes.ndim == LEAD + 4 and lanes.stride(4) == 1 else tuple(range(lanes.ndim))
    plain = lanes.permute(order)
    shape = (plain.shape[0], 2, radii, *plain.shape[LEAD:])
    out = plain.new_zeros(shape)
    out[:, : plain.shape[1]] = plain
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return out.permute(inverse)


def flat(x: Triple) -> tuple[Tensor, Tensor, bool]:
    """A value and its lanes, contiguous in one order of axes, and whether that is channels last: ``[N, H, W, C]``."""
    assert x.lanes is not None
    if not is_last(x.x):
        return x.x, x.lanes, False
    return x.x.permute(0, 2, 3, 1), x.lanes.permute(0, 1, 2, 3, 5, 6, 4), True


def unflat(lanes: Tensor, last: bool) -> Tensor:
    """Lanes in the order of axes that :func:`flat` changed."""
    return lanes.permute(0, 1, 2, 3, 6, 4, 5) if last else lanes
