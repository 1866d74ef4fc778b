import pytest
import torch
from sklearn.datasets import load_digits

from pquant.data import Digits, Splits


def images_of(splits: Splits) -> list[torch.Tensor]:
    return [part.tensors[0] for part in (splits.train, splits.validation, splits.test)]


def test_sizes_shapes_and_types() -> None:
    splits = Digits().load(0)
    assert [len(images) for images in images_of(splits)] == [1258, 180, 359]
    assert splits.input_shape == (64,)
    assert splits.num_classes == splits.num_outputs == 10
    x, y = splits.train.tensors
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert [len(part) for part in images_of(Digits(validation_fraction=0.2, test_fraction=0.3).load(0))] == [899, 359, 539]


def test_parts_together_are_the_whole_set() -> None:
    whole = torch.from_numpy(load_digits().data).float()
    together = torch.cat(images_of(Digits(standardize=False).load(1)))
    assert sorted(together.tolist()) == sorted(whole.tolist())


def test_classes_are_in_proportion() -> None:
    splits = Digits().load(0)
    assert torch.bincount(splits.validation.tensors[1]).tolist() == pytest.approx([18] * 10, abs=1)


def test_the_seed_decides() -> None:
    first, again, other = (Digits().load(seed).train.tensors[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_standardised_by_the_training_part_with_constant_pixels_at_zero() -> None:
    raw, standard = Digits(standardize=False).load(0), Digits().load(0)
    x, mean = raw.train.tensors[0], raw.train.tensors[0].mean(0)
    std = x.std(0, correction=0)
    assert (std == 0).any()
    expected = (raw.test.tensors[0] - mean) / torch.where(std > 0, std, 1)
    assert torch.allclose(standard.test.tensors[0], expected, atol=1e-4)
    assert (standard.train.tensors[0][:, std == 0] == 0).all()


def test_images_are_the_flat_inputs_in_another_shape() -> None:
    flat, image = Digits().load(0), Digits(flatten=False).load(0)
    assert image.input_shape == (1, 8, 8)
    assert torch.equal(image.train.tensors[0].flatten(1), flat.train.tensors[0])
