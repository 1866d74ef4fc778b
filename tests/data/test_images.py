import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch

from pquant.data import Cifar10, Images, Mnist
from pquant.errors import ConfigError

Arrays = dict[str, np.ndarray]


def images(shape: tuple[int, ...], train: int = 40, test: int = 20) -> Arrays:
    random = np.random.default_rng(0)
    parts = {"train": train, "test": test}
    x = {f"x_{part}": random.integers(0, 256, (count, *shape), dtype=np.uint8) for part, count in parts.items()}
    return x | {f"y_{part}": (np.arange(count) % 10).astype(np.uint8) for part, count in parts.items()}


def saved(tmp_path: Path, arrays: Arrays) -> str:
    np.savez(tmp_path / "images.npz", **arrays)
    return str(tmp_path / "images.npz")


def test_mnist_is_flat_by_default_with_exact_parts(tmp_path: Path) -> None:
    splits = Mnist(path=saved(tmp_path, images((28, 28))), validation_fraction=0.25).load(0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [30, 10, 20]
    assert splits.input_shape == (784,)
    assert splits.num_classes == 10
    assert splits.train.tensors[0].dtype == torch.float32
    assert splits.train.tensors[1].dtype == torch.int64
    assert torch.bincount(splits.validation.tensors[1]).tolist() == [1] * 10


def test_images_are_scaled_channels_first_and_standardised_by_the_training_part(tmp_path: Path) -> None:
    arrays = images((32, 32, 3))
    arrays["x_train"][..., 2] = 7
    splits = Cifar10(path=saved(tmp_path, arrays), validation_fraction=0.25).load(0)
    train, test = splits.train.tensors[0], splits.test.tensors[0]
    assert splits.input_shape == (3, 32, 32)
    assert train.is_contiguous()
    assert torch.allclose(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(train.std((0, 2, 3), correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5)
    raw = torch.from_numpy(arrays["x_test"][..., 0] / 255).float()
    slope = (test[0, 0].max() - test[0, 0].min()) / (raw[0].max() - raw[0].min())
    shift = (test[:, 0] - slope * raw).flatten()
    assert torch.allclose(shift, shift[0].expand_as(shift), atol=1e-4)
    assert torch.allclose(test[:, 2], torch.from_numpy(arrays["x_test"][..., 2] / 255 - 7 / 255).float(), atol=1e-6)


@pytest.mark.parametrize("flatten", [False, True])
def test_what_was_done_to_pixels_is_told_in_raw_pixels(tmp_path: Path, flatten: bool) -> None:
    arrays = images((32, 32, 3))
    splits = Cifar10(path=saved(tmp_path, arrays), flatten=flatten, validation_fraction=0.25).load(0)
    done = splits.preprocessing
    raw = splits.test.tensors[0] * done.scale + done.offset
    assert torch.allclose(raw.reshape(-1, 3, 32, 32), torch.from_numpy(arrays["x_test"]).permute(0, 3, 1, 2).float(), atol=1e-2)
    assert splits.classes == tuple("0123456789") and "pixels from 0 to 255" in splits.described["input_note"]
    grey = Mnist(path=saved(tmp_path, images((28, 28))), validation_fraction=0.25).load(0)
    assert isinstance(grey.described["input_scale"], float)


def test_validation_images_are_no_training_images_and_the_seed_decides(tmp_path: Path) -> None:
    source = Mnist(path=saved(tmp_path, images((28, 28))), validation_fraction=0.25)
    first, again, other = source.load(0), source.load(0), source.load(1)
    together = torch.cat([first.train.tensors[0], first.validation.tensors[0]])
    assert len(together.unique(dim=0)) == 40
    assert torch.equal(first.train.tensors[0], again.train.tensors[0])
    assert not torch.equal(first.train.tensors[1], other.train.tensors[1])


def test_limit_keeps_that_many_training_images_and_all_others(tmp_path: Path) -> None:
    path = saved(tmp_path, images((28, 28)))
    splits = Mnist(path=path, validation_fraction=0.25, limit=7).load(0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [7, 10, 20]
    assert len(Mnist(path=path, validation_fraction=0.25, limit=1000).load(0).train) == 30


def test_flatten_gives_the_same_values_and_a_channel_axis_of_one_is_accepted(tmp_path: Path) -> None:
    arrays = images((28, 28))
    flat = Mnist(path=saved(tmp_path, arrays), validation_fraction=0.25).load(0)
    arrays |= {"x_train": arrays["x_train"][..., None], "y_train": arrays["y_train"][:, None]}
    image = Mnist(path=saved(tmp_path, arrays), validation_fraction=0.25, flatten=False).load(0)
    assert image.input_shape == (1, 28, 28)
    assert torch.equal(image.train.tensors[0].flatten(1), flat.train.tensors[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((40, 14, 14), np.uint8)}, r"x_train must be uint8 \(N, 28, 28\) for MNIST, got uint8 \(40, 14, 14\)"),
        ({"x_test": np.zeros((20, 28, 28), np.float32)}, r"x_test must be uint8 \(N, 28, 28\) for MNIST, got float32"),
        ({"x_test": np.zeros((0, 28, 28), np.uint8)}, r"x_test must be uint8"),
        ({"y_train": np.zeros(39, np.uint8)}, r"y_train must be integers \(40,\), one per image for MNIST, got uint8 \(39,\)"),
        ({"y_test": np.zeros(20, np.float32)}, r"y_test must be integers"),
        ({"y_test": np.full(20, 10)}, r"y_test must have labels 0 to 9, got 10 to 10"),
        ({"y_test": np.full(20, -1)}, r"y_test must have labels 0 to 9, got -1 to -1"),
    ],
)
def test_other_arrays_are_refused_by_path_and_name(tmp_path: Path, change: Arrays, message: str) -> None:
    path = saved(tmp_path, images((28, 28)) | change)
    with pytest.raises(ConfigError, match=f"images.npz: {message}"):
        Mnist(path=path).load(0)


def test_missing_file_and_missing_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file 'nowhere.npz'"):
        Mnist(path="nowhere.npz").load(0)
    with pytest.raises(ConfigError, match="there is no array 'x_train'; expected the arrays x_train, y_train, x_test, y_test; found x, y"):
        Mnist(path=saved(tmp_path, {"x": np.zeros(1), "y": np.zeros(1)})).load(0)


def test_without_torchvision_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError, match=r"fetched by torchvision: .*vision.*, or give a local copy: data.path=<npz with keys x_train,"):
        Mnist().load(0)


def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = Path(saved(tmp_path, images((28, 28))))
    content = path.read_bytes()
    for damaged in (content[:-100], content[:5000], content[:3000] + b"?" + content[3001:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="images.npz: cannot be read as an npz file of plain arrays"):
            Mnist(path=str(path)).load(0)


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, make: object) -> None:
    module = ModuleType("torchvision")
    module.datasets = SimpleNamespace(MNIST=make, CIFAR10=make)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (URLError("no route\nto host"), "URLError: <urlopen error no route to host>"),
        (AssertionError("a broken file in the root"), "AssertionError: a broken file in the root"),
    ],
)
def test_without_network_the_error_says_how_to_give_a_local_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, reason: str
) -> None:
    def fail(root: Path, train: bool, download: bool) -> None:
        raise error

    fake_torchvision(monkeypatch, fail)
    with pytest.raises(ConfigError) as caught:
        Cifar10(root=str(tmp_path)).load(0)
    assert str(caught.value) == (
        f"CIFAR10 is not in {tmp_path} and could not be fetched ({reason}); "
        "give a local copy: data.path=<npz with keys x_train, y_train, x_test, y_test>"
    )


def test_what_torchvision_fetches_equals_a_local_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arrays, seen = images((28, 28)), []

    def fetch(root: Path, train: bool, download: bool) -> SimpleNamespace:
        seen.append((root, download))
        part = "train" if train else "test"
        return SimpleNamespace(data=torch.from_numpy(arrays[f"x_{part}"]), targets=arrays[f"y_{part}"].tolist())

    fake_torchvision(monkeypatch, fetch)
    sources = Mnist(root=str(tmp_path), validation_fraction=0.25), Mnist(path=saved(tmp_path, arrays), validation_fraction=0.25)
    fetched, local = (source.load(0) for source in sources)
    assert seen == [(tmp_path, True)] * 2
    assert torch.equal(fetched.train.tensors[0], local.train.tensors[0])
    assert torch.equal(fetched.test.tensors[1], local.test.tensors[1])


def of_file(tmp_path: Path, x: np.ndarray, **fields: object) -> Images:
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(len(x)) % 2)
    return Images(path=str(tmp_path / "mine.npz"), **fields)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "layout", "inputs"),
    [
        ((8, 6), "auto", (1, 8, 6)),
        ((3, 8, 6), "auto", (3, 8, 6)),
        ((8, 6, 3), "auto", (3, 8, 6)),
        ((8, 6, 1), "auto", (1, 8, 6)),
        ((16, 8, 6), "nchw", (16, 8, 6)),
        ((8, 6, 16), "nhwc", (16, 8, 6)),
        ((3, 8, 3), "nhwc", (3, 3, 8)),
    ],
)
def test_the_layout_follows_from_the_shape_or_is_given(tmp_path: Path, shape: tuple[int, ...], layout: str, inputs: tuple[int, ...]) -> None:
    x = pixels(*shape)
    splits = of_file(tmp_path, x, layout=layout).load(0)
    assert splits.input_shape == inputs and splits.num_classes == 2
    done = splits.preprocessing
    raw = torch.cat([part.tensors[0] for part in (splits.train, splits.validation, splits.test)]) * done.scale + done.offset
    last = inputs[0] == shape[-1] and len(shape) == 3
    first = torch.from_numpy(np.moveaxis(x, -1, 1) if last else x).reshape(-1, *inputs).float()
    assert {tuple(one.round().flatten().tolist()) for one in raw} == {tuple(one.flatten().tolist()) for one in first}


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        ((16, 8, 6), {}, r"mine.npz: expected a shape that determines the channel axis; give data.layout=nchw or nhwc; got x \(40, 16, 8, 6\)"),
        ((3, 8, 3), {}, r"give data.layout=nchw or nhwc; got x \(40, 3, 8, 3\)"),
        ((8,), {}, r"expected images \(N, C, H, W\), \(N, H, W, C\) or \(N, H, W\); got x \(40, 8\)"),
        ((8, 6), {"layout": "nchw"}, r"expected 4 axes for data.layout=nchw; got x \(40, 8, 6\)"),
        ((3, 8, 6), {"layout": "nhw"}, "expected 3 axes for data.layout=nhw"),
    ],
)
def test_a_layout_that_is_ambiguous_or_wrong_is_refused(tmp_path: Path, shape: tuple[int, ...], fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        of_file(tmp_path, pixels(*shape), **fields).load(0)


def test_each_channel_is_standardised_and_bytes_are_scaled_to_1_without(tmp_path: Path) -> None:
    x = pixels(8, 6, 3)
    train = of_file(tmp_path, x).load(0).train.tensors[0]
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.ones(3))
    plain = of_file(tmp_path, x, standardize=False).load(0)
    assert float(plain.train.tensors[0].min()) == 0 and float(plain.train.tensors[0].max()) == 1
    assert plain.described["input_scale"] == 255 and plain.described["input_offset"] == 0
    floats = of_file(tmp_path, x.astype(np.float32), standardize=False).load(0)
    assert float(floats.train.tensors[0].max()) == 255 and floats.described["input_scale"] == 1


def test_images_of_a_file_can_be_flat_augmented_weighted_and_of_a_regression(tmp_path: Path) -> None:
    x, y = pixels(3, 8, 6), np.arange(40) / 3
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, w_train=np.arange(40) + 1, x_test=x[:9], y_test=y[:9], w_test=np.ones(9))
    path = str(tmp_path / "a.npz")
    whole, flat = (Images(path=path, weight="w", flatten=flatten).load(0) for flatten in (False, True))
    assert flat.input_shape == (144,) and torch.equal(whole.train.tensors[0].flatten(1), flat.train.tensors[0])
    assert torch.equal(whole.train.tensors[2], flat.train.tensors[2]) and whole.num_classes is None and len(whole.test) == 9
    assert flat.preprocessing.offset.shape == (144,) and whole.augment is None
    moved = Images(path=path, augment="flip_crop").load(0)
    assert moved.augment is not None and moved.augment(moved.train.tensors[0], torch.Generator()).shape == moved.train.tensors[0].shape
    with pytest.raises(ConfigError, match="Images.augment must be none with data.flatten=true"):
        Images(path=path, augment="crop", flatten=True)
    with pytest.raises(ConfigError, match="Images.augment must be none with data.reconstruct=true"):
        Images(path=path, augment="crop", reconstruct=True)
    assert Images(path=path, target=None, reconstruct=True).load(0).num_outputs == 144


def test_scales_of_bytes_can_be_powers_of_two(tmp_path: Path) -> None:
    splits = of_file(tmp_path, pixels(8, 6), standardize="power_of_two").load(0)
    assert np.frexp(splits.described["input_scale"])[0] == 0.5
