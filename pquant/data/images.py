"""Data sources of images: any images in a file, and MNIST and CIFAR-10 from a local file or downloaded by torchvision."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from pquant.data.arrays import Arrays
from pquant.data.augmentation import AUGMENTATIONS, Augmentation
from pquant.data.files import CACHE, GIVEN_SPLIT, expanded, no_download, read_npz
from pquant.data.splits import Preprocessing, Splits
from pquant.data.splitting import POWER_OF_TWO, Array, hold_out, portion, standardize, to_splits
from pquant.errors import ConfigError
from pquant.installation import extra
from pquant.settings import Settings, schema, setting

CLASSES = [str(label) for label in range(10)]
LOCAL_COPY = f"npz with keys {', '.join(GIVEN_SPLIT)}"


Layout = Literal["auto", "nchw", "nhwc", "nhw"]
BYTE = 255
MOST_CHANNELS = 4
"""With layout "auto", the largest size of an axis that is taken for the channels."""


@dataclass(frozen=True)
class ImageSettings(Settings):
    """Settings that all sources of images share.

    Args:
        flatten: inputs have one axis; else (channels, height, width), for a convolutional network.
        augment: random changes of the training images, anew for each epoch: moves by up to 4 pixels (crop), and mirror images too (flip_crop).
    """

    flatten: bool = False
    augment: Augmentation = "none"

    def __post_init__(self) -> None:
        """Check that flat inputs are not augmented."""
        super().__post_init__()
        if self.flatten and self.augment != "none":
            raise self.error("augment", "none with data.flatten=true, which leaves no rows and columns to move")

    def finished(self, splits: Splits) -> Splits:
        """Return splits of images (channels, height, width) in memory, flattened or with augmentation as set."""
        splits = replace(splits, augment=AUGMENTATIONS[self.augment])
        if not self.flatten:
            return splits
        shape, done = splits.input_shape, splits.preprocessing
        assert done is not None
        offset, scale = (one.flatten() if one.numel() == 1 else one.expand(shape).flatten() for one in (done.offset, done.scale))
        train, validation, test = (_flat(part) for part in (splits.train, splits.validation, splits.test))
        return replace(splits, train=train, validation=validation, test=test, preprocessing=replace(done, offset=offset, scale=scale))


@schema("data", "images")
@dataclass(frozen=True)
class Images(ImageSettings, Arrays):
    """Images from an npz file or a folder of npy files, with classes or regression targets; inputs are (channels, height, width).

    Bytes (uint8) are pixels from 0 to 255; other numbers are taken as they are. Each channel is standardised by its mean and deviation over all
    pixels of the training images; without ``standardize``, bytes are scaled to [0, 1].

    Args:
        layout: the axes of the images in the file: N images with C channels, height H and width W. "auto": three axes are "nhw"; of four, the axis of
            channels has at most 4 values, and the axis at the other place has more.
    """

    layout: Layout = "auto"

    def __post_init__(self) -> None:
        """Check that inputs are not augmented with ``reconstruct``, since the targets would not be moved with them."""
        super().__post_init__()
        if self.reconstruct and self.augment != "none":
            raise self.error("augment", "none with data.reconstruct=true, whose targets it does not move")

    def load(self, seed: int) -> Splits:
        """Return the splits.

        Raises:
            ConfigError: no such file or arrays, arrays of other shapes or kinds, a layout that is ambiguous, values that are not finite, or too few
                examples.
        """
        found = self.examples()
        layout = self._layout(found.x.shape)
        first = {"nhw": found.x[:, None], "nhwc": np.moveaxis(found.x, -1, 1)}.get(layout, found.x)
        unit = BYTE if found.is_bytes and not self.standardize else 1
        splits = self.loaded(replace(found, x=np.ascontiguousarray(first) / np.float32(unit)), seed)
        done = splits.preprocessing
        assert done is not None
        last = layout == "nhwc" and first.shape[1] > 1
        note = "raw images are (height, width, channels)" if last else ""
        done = replace(done, offset=done.offset * unit, scale=done.scale * unit, channels_last=last, note=note)
        return self.finished(replace(splits, preprocessing=done))

    def scale(self, parts: Sequence[Tensor]) -> Preprocessing:
        """Shift and scale each channel of (N, channels, height, width) in place by mean and deviation of the first part; return the preprocessing."""
        return standardize(parts, (0, 2, 3), self.standardize == POWER_OF_TWO)

    def _layout(self, shape: tuple[int, ...]) -> str:
        """Return the layout of images of a shape.

        Raises:
            ConfigError: the shape has not the axes of ``data.layout``, or does not determine the layout.
        """
        if self.layout != "auto":
            if len(shape) != len(self.layout):
                raise self._refused(shape, f"{len(self.layout)} axes for data.layout={self.layout}")
            return self.layout
        if len(shape) == 3:
            return "nhw"
        if len(shape) != 4:
            raise self._refused(shape, "images (N, C, H, W), (N, H, W, C) or (N, H, W)")
        first, last = shape[1] <= MOST_CHANNELS, shape[3] <= MOST_CHANNELS
        if first == last:
            raise self._refused(shape, "a shape that determines the channel axis; give data.layout=nchw or nhwc")
        return "nchw" if first else "nhwc"

    def _refused(self, shape: tuple[int, ...], expected: str) -> ConfigError:
        return ConfigError(f"{self.path}: expected {expected}; got x {shape}")


@dataclass(frozen=True)
class TorchvisionImages(ImageSettings):
    """Images with their own test set; the validation set is drawn from the training images, stratified by class.

    Channels are standardised.

    Args:
        path: an npz file with uint8 images ``x_train``, ``x_test`` (N, height, width[, channels]) and labels ``y_train``, ``y_test``; null:
            torchvision downloads them.
        root: the folder of torchvision's downloads.
        validation_fraction: share of the training images held out for validation.
        limit: the largest number of training images; null for all.
    """

    torchvision_name: ClassVar[str]
    shape: ClassVar[tuple[int, ...]]

    path: str | None = None
    root: str = CACHE
    validation_fraction: float = setting(0.1, gt=0, lt=1)
    limit: int | None = setting(None, ge=1)

    def load(self, seed: int) -> Splits:
        """Return the splits.

        Raises:
            ConfigError: the images can be neither read nor downloaded, or are not images of this data set.
        """
        x, y, x_test, y_test = self._checked(read_npz(self.path, GIVEN_SPLIT) if self.path else self._fetched())
        rows, held = hold_out(np.arange(len(y)), y, portion(len(y), self.validation_fraction), seed, CLASSES)
        rows = rows[: self.limit]
        inputs = [_channels_first(images) for images in (x[rows], x[held], x_test)]
        done = standardize(inputs, (0, 2, 3))
        note, last = "raw inputs are pixels from 0 to 255", len(self.shape) == 3
        done = Preprocessing(BYTE * done.offset, BYTE * done.scale, classes=tuple(CLASSES), note=note, channels_last=last)
        return self.finished(replace(to_splits(inputs, [y[rows], y[held], y_test], len(CLASSES)), preprocessing=done))

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
class Mnist(TorchvisionImages):
    """Handwritten digits: 60,000 + 10,000 grey images of 28x28; inputs (784,), or (1, 28, 28) with ``flatten`` false."""

    torchvision_name: ClassVar[str] = "MNIST"
    shape: ClassVar[tuple[int, ...]] = (28, 28)

    flatten: bool = True


@schema("data", "cifar10")
@dataclass(frozen=True)
class Cifar10(TorchvisionImages):
    """Photographs of 10 classes: 50,000 + 10,000 colour images of 32x32; inputs (3, 32, 32)."""

    torchvision_name: ClassVar[str] = "CIFAR10"
    shape: ClassVar[tuple[int, ...]] = (32, 32, 3)


def _channels_first(images: Array) -> Tensor:
    """Return uint8 (N, height, width, channels) as float32 (N, channels, height, width) from 0 to 1."""
    moved = torch.from_numpy(images).permute(0, 3, 1, 2)
    return moved.to(torch.float32, memory_format=torch.contiguous_format).div_(BYTE)


def _flat(part: Dataset[tuple[Tensor, ...]]) -> TensorDataset:
    assert isinstance(part, TensorDataset)
    x, *others = part.tensors
    return TensorDataset(x.flatten(1), *others)
