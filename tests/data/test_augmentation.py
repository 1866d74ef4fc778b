"""Random changes of training images, against a loop over pixels."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pquant.data import Cifar10, Mnist, Splits
from pquant.data.augmentation import PADDING, crop, flip_crop
from pquant.errors import ConfigError
from pquant.training import Training
from pquant.training.trainer import Trainer


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """Return an image (channels, height, width) with its rows moved down and its columns right, zeros elsewhere."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = image[:, row - down, column - right]
    return out


def test_each_image_is_mirrored_or_not_and_moved() -> None:
    images = torch.rand(80, 3, 7, 9) + 1
    shifts = [(down, right) for down in range(-PADDING, PADDING + 1) for right in range(-PADDING, PADDING + 1)]
    for augment, mirrors in ((crop, (False,)), (flip_crop, (False, True))):
        seen = set()
        for image, changed in zip(images, augment(images, torch.Generator().manual_seed(0)), strict=True):
            candidates = {(shift, mirror): moved(image.flip(2) if mirror else image, *shift) for shift in shifts for mirror in mirrors}
            found = [key for key, candidate in candidates.items() if torch.equal(candidate, changed)]
            assert len(found) == 1
            seen.add(found[0])
        assert {mirror for _, mirror in seen} == set(mirrors)
        assert {down for (down, _), _ in seen} == {right for (_, right), _ in seen} == set(range(-PADDING, PADDING + 1))


def test_the_generator_alone_decides() -> None:
    images = torch.rand(8, 1, 5, 5)
    one, same, other = (flip_crop(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Return a small file of the form of CIFAR-10."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 60), ("test", 20)):
        arrays |= {f"x_{part}": rng.integers(0, 256, (count, 32, 32, 3), np.uint8), f"y_{part}": np.arange(count) % 10}
    np.savez(tmp_path / "cifar.npz", **arrays)
    return str(tmp_path / "cifar.npz")


class Net(nn.Module):
    """A network that remembers its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(3072, 10), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        """Return the class scores."""
        self.seen.append(x.detach().clone())
        return self.layer(x.flatten(1))


def trainer(splits: Splits, epochs: int = 3) -> Trainer:
    """Return a trainer of a network that remembers its inputs."""
    torch.manual_seed(0)
    training = Training(pretraining_epochs=0, epochs=epochs, fine_tuning_epochs=0, batch_size=48)
    constant = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0)
    return Trainer(Net(), splits, training, partial(torch.optim.SGD, lr=0.1), constant, torch.device("cpu"), seed=0)


def test_training_batches_alone_are_augmented_anew_in_each_epoch(file: str) -> None:
    splits = Cifar10(path=file, augment="flip_crop", validation_fraction=0.2).load(0)
    run = trainer(splits)
    run.fit(lambda row: None)
    sums = [sorted(x.sum((1, 2, 3)).tolist()) for x in run.model.seen]
    training, validation = [one for one in sums if len(one) == 48], [one for one in sums if len(one) == 12]
    assert len(training) == len(validation) == 3
    assert training[0] != training[1] != training[2] and validation[0] == validation[1] == validation[2]
    assert sorted(splits.train[index][0].sum().item() for index in range(48)) != training[0]


def test_a_run_that_goes_on_is_augmented_as_one_without_a_break(file: str) -> None:
    splits = Cifar10(path=file, augment="flip_crop", validation_fraction=0.2).load(0)
    whole, first, second = trainer(splits), trainer(splits), trainer(splits)
    whole.fit(lambda row: None)

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.fit(stop)
    second.load_state_dict(first.state_dict())
    second.fit(lambda row: None)
    assert torch.equal(whole.model.layer.weight, second.model.layer.weight)


def test_flat_images_are_not_augmented() -> None:
    with pytest.raises(ConfigError, match="Mnist.augment must be none with data.flatten=true"):
        Mnist(augment="crop")
    with pytest.raises(ConfigError, match="Cifar10.augment must be one of"):
        Cifar10(augment="mirror")  # type: ignore[arg-type]
