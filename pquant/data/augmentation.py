"""Random changes of training images."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

PADDING = 4
Augmentation = Literal["none", "crop", "flip_crop"]
Augment = Callable[[Tensor, torch.Generator], Tensor]
"""A function that changes a batch of inputs at random, with numbers from a generator on the CPU."""


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels along each axis and fill up with zeros: a random crop of the padded image.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2.

    Args:
        images: (N, channels, height, width).
        generator: random number generator on the CPU.
    """
    return _moved(images, torch.zeros(len(images), dtype=torch.bool), generator)


def flip_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with a probability of one half, then :func:`crop` it."""
    return _moved(images, torch.rand(len(images), generator=generator) < 0.5, generator)


def _moved(images: Tensor, mirrored: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    down, right = torch.randint(2 * PADDING + 1, (2, count, 1), generator=generator)
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + right
    rows = torch.arange(height) + down
    rows, columns = rows[:, :, None].to(images.device), columns[:, None, :].to(images.device)
    padded = nn.functional.pad(images, [PADDING] * 4).movedim(1, -1)
    return padded[torch.arange(count, device=images.device)[:, None, None], rows, columns].movedim(-1, 1).contiguous()


AUGMENTATIONS: dict[Augmentation, Augment | None] = {"none": None, "crop": crop, "flip_crop": flip_crop}
