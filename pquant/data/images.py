"""MNIST and CIFAR-10, from a local file or fetched by torchvision."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pquant.data.augmentation import AUGMENTATIONS, Augmentation
from pquant.data.files import CACHE, GIVEN_SPLIT, expanded, no_download, read_npz
from pquant.data.splits import Preprocessing, Splits
from pquant.data.splitting import Array, hold_out, portion, standardize, to_splits
from pquant.errors import ConfigError
from pquant.installation import extra
from pquant.settings import Settings, schema, setting

CLASSES = [str(label) for label in range(10)]
LOCAL_COPY = f"npz with keys {', '.join(GIVEN_SPLIT)}"


@dataclass(frozen=True)
class Images(Settings):
    """Images with their own test set; the validation set is drawn from the training images, stratified by class.

    Channels are standardised.

    Args:
        path: an npz file with uint8 images ``x_train``, ``x_test`` (N, height, width[, channels]) and labels ``y_train``, ``y_test``; null:
            torchvision downloads them.
        root: the folder of torchvision's downloads.
        validation_fraction: share of the training images held out for validation.
        limit: the largest number of training images; null for all.
        flatten: inputs have one axis; else (channels, height, width), for a convolutional network.
        augment: random changes of the training images, anew for each epoch: moves by up to 4 pixels (crop), and mirror images too (flip_crop).
    """

    torchvision_name: ClassVar[str]
    shape: ClassVar[tuple[int, ...]]

    path: str | None = None
    root: str = CACHE
    validation_fraction: float = setting(0.1, gt=0, lt=1)
    limit: int | None = setting(None, ge=1)
    flatten: bool = False
    augment: Augmentation = "none"

    def __post_init__(self) -> None:
        """Check that flat inputs are not augmented."""
        super().__post_init__()
        if self.flatten and self.augment != "none":
            raise self.error("augment", "none with data.flatten=true, which leaves no rows and columns to move")

    def load(self, seed: int) -> Splits:
        """Return the splits.

        Raises:
            ConfigError: the images can neither be read nor downloaded, or are not those of this data set.
        """
        x, y, x_test, y_test = self._checked(read_npz(self.path, GIVEN_SPLIT) if self.path else self._fetched())
        rows, held = hold_out(np.arange(len(y)), y, portion(len(y), self.validation_fraction), seed, CLASSES)
        rows = rows[: self.limit]
        inputs = [_channels_first(images) for images in (x[rows], x[held], x_test)]
        done = self._preprocessing(standardize(inputs, (0, 2, 3)), inputs[0].shape[1:])
        splits = to_splits([one.flatten(1) if self.flatten else one for one in inputs], [y[rows], y[held], y_test], len(CLASSES))
        return replace(splits, preprocessing=done, augment=AUGMENTATIONS[self.augment])

    def _preprocessing(self, done: Preprocessing, shape: torch.Size) -> Preprocessing:
        """Return what was done to pixels from 0 to 255, given what was done to those from 0 to 1."""
        offset, scale = 255 * done.offset, 255 * done.scale
        if self.flatten:
            offset, scale = (value.flatten() if value.numel() == 1 else value.expand(shape).flatten() for value in (offset, scale))
        return Preprocessing(offset, scale, classes=tuple(CLASSES), note="raw inputs are pixels from 0 to 255")

    def _fetched(self) -> list[Array]:
        name = self.torchvision_name
        try:
            from torchvision import datasets
        except ImportError as error:
            message = f"{name} is fetched by torchvision: {extra('vision')}, or give a local copy: data.path=<{LOCAL_COPY}>"
            raise ConfigError(message) from error
        root = expanded(self.root, "data.root")
        try:
            parts = [getattr(datasets, name)(root, train=train, download=True) for train in (True, False)]
        except Exception as error:
            raise no_download(name, error, self.root, LOCAL_COPY) from error
        return [np.asarray(array) for part in parts for array in (part.data, part.targets)]

    def _checked(self, arrays: list[Array]) -> list[Array]:
        """Return images (N, height, width, channels) with labels (N,); ConfigError if their type, shape or values are wrong."""
        x, y, x_test, y_test = arrays
        checked: list[Array] = []
        for part, images, labels in (("train", x, y), ("test", x_test, y_test)):
            if images.dtype != np.uint8 or images.shape[1:] not in (self.shape, (*self.shape, 1)) or not len(images):
                raise self._unexpected(f"x_{part}", f"uint8 (N, {', '.join(map(str, self.shape))})", images)
            labels = labels.reshape(-1)
            if labels.dtype.kind not in "iu" or len(labels) != len(images):
                raise self._unexpected(f"y_{part}", f"integers ({len(images)},), one per image", labels)
            if labels.min() < 0 or labels.max() >= len(CLASSES):
                raise ConfigError(f"{self.path}: y_{part} must have labels 0 to {len(CLASSES) - 1}, got {labels.min()} to {labels.max()}")
            checked += [images.reshape(*images.shape[:3], -1), labels]
        return checked

    def _unexpected(self, name: str, expected: str, array: Array) -> ConfigError:
        return ConfigError(f"{self.path}: {name} must be {expected} for {self.torchvision_name}, got {array.dtype} {array.shape}")


@schema("data", "mnist")
@dataclass(frozen=True)
class Mnist(Images):
    """Handwritten digits: 60,000 + 10,000 grey images of 28x28; inputs (784,), or (1, 28, 28) with ``flatten`` false."""

    torchvision_name: ClassVar[str] = "MNIST"
    shape: ClassVar[tuple[int, ...]] = (28, 28)

    flatten: bool = True


@schema("data", "cifar10")
@dataclass(frozen=True)
class Cifar10(Images):
    """Photographs of 10 classes: 50,000 + 10,000 colour images of 32x32; inputs (3, 32, 32)."""

    torchvision_name: ClassVar[str] = "CIFAR10"
    shape: ClassVar[tuple[int, ...]] = (32, 32, 3)


def _channels_first(images: Array) -> Tensor:
    """Return uint8 (N, height, width, channels) as float32 (N, channels, height, width) from 0 to 1."""
    moved = torch.from_numpy(images).permute(0, 3, 1, 2)
    return moved.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
