from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pquant.data import Constituents, Splits
from pquant.errors import ConfigError

LABELS = np.array(list("tgq"))


def jets(count: int = 60, dtype: str = "float16") -> tuple[np.ndarray, np.ndarray]:
    """Return jets of 5 particles with 3 features, the first of which is the jet's number; the last 1, 2 or 3 particles are padding."""
    x = np.random.default_rng(0).normal(2, 3, (count, 5, 3)).astype(dtype)
    x[:, :, 0] = np.arange(count)[:, None] + 1
    for jet in range(count):
        x[jet, 4 - jet % 3 :] = 0
    return x, LABELS[np.arange(count) % 3]


def saved(tmp_path: Path, **arrays: Any) -> str:
    path = tmp_path / "jets.npz"
    np.savez(path, **arrays)
    return str(path)


def tensors(splits: Splits) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [part.tensors for part in (splits.train, splits.validation, splits.test)]  # type: ignore[attr-defined]


def test_what_was_done_to_the_features_is_told_with_what_padding_is(tmp_path: Path) -> None:
    x, y = jets()
    path = saved(tmp_path, x=x, y=y)
    for standardize in (True, "power_of_two"):
        splits = Constituents(path=path, standardize=standardize).load(0)
        done, inputs = splits.preprocessing, splits.train.tensors[0]  # type: ignore[attr-defined]
        raw = tensors(Constituents(path=path, standardize=False).load(0))[0][0]
        real = raw.any(-1)
        assert torch.allclose((inputs * done.scale + done.offset)[real], raw[real], atol=1e-3)
        assert splits.classes == ("g", "q", "t") and "is padding" in splits.described["input_note"]
    assert (torch.frexp(done.scale).mantissa == 0.5).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_particles_and_labels_stay_together(tmp_path: Path, dtype: str) -> None:
    x, y = jets(dtype=dtype)
    parts = tensors(Constituents(path=saved(tmp_path, x=x, y=y), standardize=False).load(0))
    assert [len(labels) for _, labels in parts] == [42, 6, 12]
    found = []
    for inputs, labels in parts:
        assert inputs.dtype == torch.float32 and labels.dtype == torch.int64
        numbers = (inputs[:, 0, 0] - 1).int().numpy()
        assert np.array_equal(inputs.numpy(), x[numbers].astype(np.float32))
        assert labels.tolist() == ["gqt".index(label) for label in y[numbers]]
        found += numbers.tolist()
    assert sorted(found) == list(range(60))


def test_features_are_standardised_over_the_particles_of_the_training_jets_and_padding_stays_zero(tmp_path: Path) -> None:
    x, y = jets()
    path = saved(tmp_path, x=x, y=y)
    raw, scaled = (tensors(Constituents(path=path, standardize=standardize).load(0)) for standardize in (False, True))
    train = raw[0][0].double().numpy()
    real = train[train.any(-1)]
    assert len(real) == 42 * 3
    for (before, _), (after, _) in zip(raw, scaled, strict=True):
        values = before.double().numpy()
        expected = np.where(values.any(-1, keepdims=True), (values - real.mean(0)) / real.std(0), 0)
        assert np.allclose(after.numpy(), expected, atol=1e-5)
    assert not scaled[0][0][raw[0][0].eq(0).all(-1)].any()


def test_the_first_particles_are_kept_and_the_scale_is_theirs(tmp_path: Path) -> None:
    x, y = jets()
    few, cut = Constituents(path=saved(tmp_path, x=x, y=y), particles=2).load(0), tmp_path / "cut"
    cut.mkdir()
    alone = Constituents(path=saved(cut, x=x[:, :2], y=y)).load(0)
    assert few.input_shape == (2, 3) and few.num_classes == 3
    assert all(torch.equal(one, other) for pair in zip(tensors(few), tensors(alone), strict=True) for one, other in zip(*pair, strict=True))


def test_the_seed_decides(tmp_path: Path) -> None:
    x, y = jets()
    source = Constituents(path=saved(tmp_path, x=x, y=y))
    first, again, other = (tensors(source.load(seed))[0][0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_fractions_give_the_sizes_of_the_parts(tmp_path: Path) -> None:
    x, y = jets()
    parts = tensors(Constituents(path=saved(tmp_path, x=x, y=y), validation_fraction=0.25, test_fraction=0.5).load(0))
    assert [len(labels) for _, labels in parts] == [15, 15, 30]


def test_particles_may_be_what_is_to_be_reconstructed(tmp_path: Path) -> None:
    x, y = jets()
    splits = Constituents(path=saved(tmp_path, x=x, y=y), reconstruct=True).load(0)
    assert splits.num_classes is None and splits.num_outputs == 15
    for inputs, targets in tensors(splits):
        assert torch.equal(targets, inputs.flatten(1))


def infinite(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[3, 1, 2] = np.inf
    return x


@pytest.mark.parametrize(
    ("arrays", "fields", "message"),
    [
        (
            lambda x, y: {"x": x[:, 0], "y": y},
            {},
            r"expected numbers x \(jets, particles, features\) and labels y \(jets,\), got x float16 \(60, 3\)",
        ),
        (lambda x, y: {"x": x[:-1], "y": y}, {}, r"got x float16 \(59, 5, 3\) and y <U1 \(60,\)"),
        (lambda x, y: {"x": x, "y": np.eye(3)[np.arange(60) % 3]}, {}, r"labels y \(jets,\), got .* and y float64 \(60, 3\)"),
        (lambda x, y: {"x": x.astype(str), "y": y}, {}, r"expected numbers x .*, got x <U"),
        (lambda x, y: {"x": x[:, :0], "y": y}, {}, r"got x float16 \(60, 0, 3\)"),
        (lambda x, y: {"x": x}, {}, r"there is no array 'y'; expected the arrays x, y; found x"),
        (lambda x, y: {"x": x, "Y": y}, {}, r"there is no array 'y'; expected the arrays x, y; found x, Y"),
        (lambda x, y: {"x": x, "y": y}, {"particles": 6}, r"Constituents.particles must be at most 5, the particles of a jet in .*, got 6"),
        (lambda x, y: {"x": infinite(x), "y": y}, {}, r"1 values are not finite numbers of 32 bits; the first is x\[3, 1, 2\] = inf"),
        (
            lambda x, y: {"x": np.full(x.shape, 1e300), "y": y},
            {},
            r"900 values are not finite numbers of 32 bits; the first is x\[0, 0, 0\] = 1e\+300",
        ),
        (lambda x, y: {"x": 0 * x, "y": y}, {}, r"all features of all particles to train on are 0"),
        (lambda x, y: {"x": x, "y": np.full(60, "a")}, {}, r"target 'y' must have at least 2 classes, got 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: Any, fields: dict[str, Any], message: str) -> None:
    path = saved(tmp_path, **arrays(*jets()))
    with pytest.raises(ConfigError, match=message):
        Constituents(path=path, **fields).load(0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", r"Constituents.path must be the path of an npz file with x \(jets, particles, features\) and labels y \(jets,\), got ''"),
        ("jets.csv", r"jets.csv: expected an .npz file"),
        ("nowhere.npz", r"data.path: there is no file 'nowhere.npz'"),
    ],
)
def test_a_path_is_needed(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Constituents(path=path).load(0)


def test_particles_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"Constituents.particles must be in \[1, inf\), got 0"):
        Constituents(particles=0)
