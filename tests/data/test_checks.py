"""Data that cannot be trained on are refused before anything is, in words that say where they are wrong."""

import logging
import math

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from pquant.data.checks import check_data
from pquant.data.splits import Splits
from pquant.errors import ConfigError


def splits(part: str, x: torch.Tensor, y: torch.Tensor, classes: int | None = 3) -> Splits:
    good = TensorDataset(torch.zeros(3, 4), torch.arange(3) if classes else torch.zeros(3, 1))
    parts = {name: good for name in ("train", "validation", "test")} | {part: TensorDataset(x, y)}
    return Splits(**parts, num_classes=classes)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_by_their_place(part: str, value: float) -> None:
    x = torch.zeros(3, 4)
    x[2, 1] = value
    with pytest.raises(ConfigError, match=rf"{'training' if part == 'train' else part} set has inputs .*{value} in example 2, position \[1\]"):
        check_data(splits(part, x, torch.arange(3)))
    y = torch.tensor([[0.0], [value], [0.0]])
    with pytest.raises(ConfigError, match="targets that are not finite"):
        check_data(splits(part, torch.zeros(3, 4), y, classes=None), train_finite=False)


def test_training_inputs_may_be_bad_where_steps_can_be_skipped() -> None:
    x = torch.full((3, 4), math.nan)
    check_data(splits("train", x, torch.arange(3)), train_finite=False)
    with pytest.raises(ConfigError, match="validation"):
        check_data(splits("validation", x, torch.arange(3)), train_finite=False)


@pytest.mark.parametrize(("part", "name"), [("train", "training"), ("validation", "validation"), ("test", "test")])
def test_empty_splits_are_refused(part: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"the {name} set is empty"):
        check_data(splits(part, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_targets_must_be_classes(wrong: int) -> None:
    with pytest.raises(ConfigError, match="with 3 classes they must be from 0 to 2"):
        check_data(splits("test", torch.zeros(3, 4), torch.tensor([0, 1, wrong])))


def test_an_absent_class_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_data(splits("validation", torch.zeros(3, 4), torch.tensor([0, 2, 2])))
    assert caplog.messages == ["the validation set has no example of class 1"]


def test_other_datasets_are_only_counted() -> None:
    class Streamed(Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            raise AssertionError("it must not be read")

    check_data(Splits(Streamed(), Streamed(), Streamed(), 3))
