import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import pquant.data.jets_simulated as module
from pquant.data import Constituents, JetsSimulated, jet_simulation
from pquant.data.substructure import NAMES
from pquant.errors import ConfigError

from .test_substructure import expected

SIMULATES = all(importlib.util.find_spec(name) for name in ("pythia8mc", "fastjet"))


def drawn(counts: dict[str, int], seed: int, on_jet: Callable[[], None] = lambda: None) -> dict[str, np.ndarray]:
    """Return drawn numbers in the form of simulated jets."""
    total = sum(counts.values())
    random = np.random.default_rng(seed)
    x, constituents = random.normal(size=(total, 16)).astype(np.float32), random.normal(size=(total, 16, 3)).astype(np.float32)
    for _ in range(total):
        on_jet()
    y = np.repeat(list(counts), list(counts.values()))
    return {"x": x, "constituents": constituents, "y": random.permutation(y), "features": np.array(NAMES)}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let jets be drawn instead of simulated; a list of the numbers of jets."""
    totals: list[int] = []

    def simulate(counts: dict[str, int], seed: int, on_jet: Callable[[], None]) -> dict[str, np.ndarray]:
        totals.append(sum(counts.values()))
        return drawn(counts, seed, on_jet)

    monkeypatch.setattr(module, "simulate", simulate)
    monkeypatch.setattr(module, "_installed", lambda name: module.PACKAGES[name])
    return totals


@pytest.mark.skipif(not SIMULATES, reason="needs uv sync --extra jets")
def test_fifty_jets_have_the_features_of_their_particles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple] = []
    compute = jet_simulation.features

    def recorded(*jet: object) -> np.ndarray:
        given.append((*jet, compute(*jet)))  # type: ignore[arg-type]
        return given[-1][-1]

    monkeypatch.setattr(jet_simulation, "features", recorded)
    source = JetsSimulated(root=str(tmp_path), jets=50, standardize=False)
    splits = source.load(0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [35, 5, 10] and splits.features == NAMES
    assert splits.classes == ("g", "q", "t", "w", "z") and torch.bincount(splits.test.tensors[1]).tolist() == [2] * 5
    rows = {tuple(row) for part in (splits.train, splits.validation, splits.test) for row in part.tensors[0].tolist()}
    assert len(given) == 50 and rows == {tuple(found.astype(np.float32).tolist()) for *_, found in given}
    for *jet, found in sorted(given, key=lambda one: len(one[1]))[:30]:
        wanted = expected(*jet)
        np.testing.assert_allclose(found, [wanted[name] for name in NAMES], rtol=1e-9)
    assert all(700 < one[0].sum() < 1700 and 0 < one[4] < 700 for one in given)
    (file,) = tmp_path.glob("*/constituents.npz")
    particles = np.load(file)["x"]
    assert particles.shape == (50, 16, 3) and (np.diff(particles[..., 0]) <= 0).all() and (particles[..., 0].sum(1) < 1.1).all()
    assert np.abs(particles[..., 1:]).max() < 1


@pytest.mark.skipif(not SIMULATES, reason="needs uv sync --extra jets")
def test_the_same_seed_gives_the_same_jets() -> None:
    one, again, other = (jet_simulation.simulate({"w": 3, "q": 2}, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], again[name]) for name in one) and not np.array_equal(one["x"], other["x"])
    assert sorted(one["y"]) == ["q", "q", "w", "w", "w"]


def test_simulated_once_for_the_same_settings(tmp_path: Path, counted: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    first = JetsSimulated(root=str(tmp_path), jets=52).load(0)
    again = JetsSimulated(root=str(tmp_path), jets=52, test_fraction=0.2).load(0)
    assert counted == [52] and torch.equal(first.train.tensors[0], again.train.tensors[0])
    JetsSimulated(root=str(tmp_path), jets=60).load(0)
    JetsSimulated(root=str(tmp_path), jets=52, simulation_seed=1).load(0)
    assert counted == [52, 60, 52] and len(list(tmp_path.iterdir())) == 3
    assert "100%" in capsys.readouterr().out


def test_particles_and_the_file_of_them_for_constituents(tmp_path: Path, counted: list[int]) -> None:
    source = JetsSimulated(root=str(tmp_path), jets=50, inputs="constituents")
    splits = source.load(3)
    (file,) = tmp_path.glob("*/constituents.npz")
    assert splits.input_shape == (16, 3)
    assert torch.equal(splits.train.tensors[0], Constituents(path=str(file)).load(3).train.tensors[0])
    features = JetsSimulated(root=str(tmp_path), jets=50).load(3)
    assert torch.equal(splits.test.tensors[1], features.test.tensors[1]) and counted == [50]


def test_a_damaged_or_half_written_set_is_simulated_again(tmp_path: Path, counted: list[int], caplog: pytest.LogCaptureFixture) -> None:
    source = JetsSimulated(root=str(tmp_path), jets=50)
    whole = source.load(0)
    (folder,) = tmp_path.iterdir()
    (folder / "features.npz").write_bytes(b"other")
    assert torch.equal(source.load(0).train.tensors[0], whole.train.tensors[0]) and counted == [50, 50]
    assert "features.npz" in caplog.text and "simulated again" in caplog.text
    (folder / "simulated.json").unlink()
    assert torch.equal(source.load(0).train.tensors[0], whole.train.tensors[0]) and counted == [50, 50, 50]


def test_a_simulation_that_ends_half_way_leaves_no_file(tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(counts: dict[str, int], seed: int, on_jet: Callable[[], None]) -> None:
        on_jet()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "simulate", fail)
        JetsSimulated(root=str(tmp_path), jets=50).load(0)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file() and file.name != "lock"] == []
    JetsSimulated(root=str(tmp_path), jets=50).load(0)
    assert counted == [50]


def test_without_the_extra_the_error_names_it_but_a_set_that_is_there_is_read(
    tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    JetsSimulated(root=str(tmp_path), jets=50).load(0)
    monkeypatch.setattr(module, "_installed", lambda name: None)
    JetsSimulated(root=str(tmp_path), jets=50).load(0)
    with pytest.raises(ConfigError, match=r"data=jets_simulated needs pythia8mc and fastjet: .*jets.*, or give a file"):
        JetsSimulated(root=str(tmp_path), jets=55).load(0)
    assert counted == [50]


def test_a_file_is_read_instead(tmp_path: Path, counted: list[int]) -> None:
    made = drawn(dict.fromkeys("gqtwz", 20), 0)
    np.savez(tmp_path / "mine.npz", x=made["x"], y=made["y"])
    assert len(JetsSimulated(path=str(tmp_path / "mine.npz"), root=str(tmp_path / "none")).load(0).train) == 70
    np.savez(tmp_path / "particles.npz", x=made["constituents"], y=made["y"])
    assert JetsSimulated(path=str(tmp_path / "particles.npz"), inputs="constituents").load(0).input_shape == (16, 3)
    assert counted == [] and not (tmp_path / "none").exists()
