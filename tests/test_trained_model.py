"""A trained model is loaded from its run's folder, predicts raw rows, and is what another run starts from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import pquant
from pquant import predict
from pquant.config import build_experiment
from pquant.errors import ConfigError
from pquant.installation import CONF
from pquant.resume import Run
from pquant.tracking.files import plain

SHORT = ["tracker=none", "progress=quiet", "training.pretraining_epochs=3", "training.epochs=2", "training.fine_tuning_epochs=1"]
NET = "model.sizes=[null,8,null]"


def conduct(folder: Path, *overrides: str) -> Path:
    """Train a run in ``folder`` and return that."""
    with initialize_config_dir(config_dir=str(CONF)):
        config = compose("config", overrides=[*SHORT, *overrides])
    folder.mkdir()
    run = Run(folder, plain(OmegaConf.to_container(config, resolve=True)), "", files={".hydra/config.yaml": OmegaConf.to_yaml(config)})
    build_experiment(config).run(run)
    return folder


def table(file: Path, target: str) -> pd.DataFrame:
    """Write and return rows whose features have different units."""
    x = np.random.default_rng(0).normal(size=(300, 3)) * [1, 50, 0.1] + [5, 0, 1]
    y = np.array(["down", "up"])[(x[:, 0] > 5).astype(int)] if target == "kind" else 3e3 * x[:, 0] + 7 * x[:, 1]
    frame = pd.DataFrame({"mass": x[:, 0], "pt": x[:, 1], "eta": x[:, 2], target: y})
    frame.to_csv(file, index=False)
    return frame


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def classes(place: Path) -> tuple[Path, pd.DataFrame]:
    frame = table(place / "kinds.csv", "kind")
    return conduct(place / "classes", "data=table", f"data.path={place / 'kinds.csv'}", "data.target=kind", NET, "quantization=hgq"), frame


@pytest.fixture(scope="module")
def regression(place: Path) -> tuple[Path, pd.DataFrame]:
    frame = table(place / "energies.csv", "energy")
    return conduct(place / "regression", "data=table", f"data.path={place / 'energies.csv'}", "data.target=energy", NET), frame


def splits_of(folder: Path) -> pquant.data.Splits:
    experiment = build_experiment(OmegaConf.load(folder / ".hydra" / "config.yaml"))  # type: ignore[arg-type]
    return experiment.data.load(experiment.seed)


def test_classes_are_predicted_by_name_from_raw_rows(classes: tuple[Path, pd.DataFrame]) -> None:
    folder, frame = classes
    model = pquant.load(folder)
    assert (model.features, model.classes, model.input_shape) == (("mass", "pt", "eta"), ("down", "up"), (3,))
    x, y = splits_of(folder).test.tensors  # type: ignore[attr-defined]
    assert (model.module(x).argmax(1) == y).float().mean().item() == pytest.approx(json.loads((folder / "summary.json").read_text())["test/accuracy"])
    inputs = model.inputs(frame)
    assert all((inputs == row).all(1).any() for row in x)  # bit for bit what the model was tested with
    shuffled = frame[["eta", "kind", "pt", "mass"]]
    predicted, probabilities = model.predict(shuffled), model.predict_proba(shuffled)
    assert set(predicted) <= {"down", "up"} and np.array_equal(predicted, np.array(model.classes)[probabilities.argmax(1)])
    assert probabilities.shape == (300, 2) and probabilities.sum(1) == pytest.approx(1)
    assert np.array_equal(probabilities, model.predict_proba(frame[["mass", "pt", "eta"]].to_numpy()))
    assert np.array_equal(predicted[:1], model.predict([frame[["mass", "pt", "eta"]].to_numpy()[0].tolist()]))


def test_numbers_are_predicted_in_the_units_of_the_target(regression: tuple[Path, pd.DataFrame]) -> None:
    folder, frame = regression
    model = pquant.load(folder)
    splits = splits_of(folder)
    x, y = splits.test.tensors  # type: ignore[attr-defined]
    rows = x.double() * splits.preprocessing.scale + splits.preprocessing.offset  # type: ignore[union-attr]
    error = model.predict(rows) - (y[:, 0].double() * splits.target_scale + splits.target_offset).numpy()
    assert np.sqrt(np.square(error).mean()) == pytest.approx(json.loads((folder / "summary.json").read_text())["test/rmse"], rel=1e-4)
    with pytest.raises(ConfigError, match="predict_proba needs a model that was trained on classes"):
        model.predict_proba(frame)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 4)), r"rows must have the shape \(N, 3\), the columns mass, pt, eta, got \(2, 4\)"),
        ([["a", "b", "c"]], "rows must hold numbers"),
        (np.array([[1.0, np.nan, 2.0]]), "row 0 has a missing or infinite value in column 'pt'"),
        (pd.DataFrame({"mas": [1.0], "pt": [1.0], "eta": [1.0]}), "there is no column 'mass', which the model needs: did you mean 'mas'"),
        (pd.DataFrame({"mass": ["x"], "pt": [1.0], "eta": [1.0]}), "the column 'mass' must hold numbers"),
    ],
)
def test_rows_that_do_not_fit_are_refused_in_one_line(rows: object, message: str, classes: tuple[Path, pd.DataFrame]) -> None:
    with pytest.raises(ConfigError, match=message):
        pquant.load(classes[0]).predict(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=digits", "data.flatten=false", "model=cnn", "quantization.default_data_integer_bits=auto"],
        ["data=digits", NET, "pruning=none", "fitcompress=on", "fitcompress.compression_goal=0.2"],
    ],
    ids=["convolutions", "fitcompress"],
)
@pytest.mark.slow
def test_every_kind_of_model_is_built_again(overrides: list[str], tmp_path: Path) -> None:
    folder = conduct(tmp_path / "run", *overrides)
    splits, model = splits_of(folder), pquant.load(folder)
    x, y = splits.test.tensors  # type: ignore[attr-defined]
    accuracy = (model.module(x).argmax(1) == y).double().mean().item()
    assert accuracy == pytest.approx(json.loads((folder / "summary.json").read_text())["test/accuracy"], abs=1e-6)
    assert model.predict(torch.zeros(2, 64)).shape == (2,) if x.ndim == 2 else model.predict(torch.zeros(2, 8, 8)).shape == (2,)


def test_missing_values_of_raw_rows_are_replaced_as_in_training(place: Path, tmp_path: Path) -> None:
    frame = table(place / "gaps.csv", "kind")
    frame.loc[::4, "pt"] = np.nan
    frame.to_csv(place / "gaps.csv", index=False)
    data = ["data=table", f"data.path={place / 'gaps.csv'}", "data.target=kind", "data.missing=mean", "data.drop=[eta]", NET]
    model = pquant.load(conduct(tmp_path / "run", *data))
    filled = frame.fillna({"pt": model.described["input_missing"][1]})
    assert model.features == ("mass", "pt") and torch.equal(model.inputs(frame), model.inputs(filled))


def test_padding_stays_padding(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(3, 2, (200, 4, 3)).astype(np.float32), random.integers(0, 2, 200)
    x[:, 3] = 0
    np.savez(tmp_path / "jets.npz", x=x, y=y)
    folder = conduct(tmp_path / "run", "data=constituents", f"data.path={tmp_path / 'jets.npz'}", NET)
    inputs, _ = splits_of(folder).test.tensors  # type: ignore[attr-defined]
    made = pquant.load(folder).inputs(x)
    assert not made[:, 3].any() and all((made == row).flatten(1).all(1).any() for row in inputs)


@pytest.mark.parametrize("flatten", [False, True])
def test_images_are_predicted_as_they_are_in_the_file(flatten: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (60, 5, 6, 3), dtype=np.uint8), np.arange(60) % 2
    for name, array in {"x": x, "y": y, "w": np.arange(60) % 4}.items():
        np.save(tmp_path / f"{name}.npy", array)
    folder = conduct(tmp_path / "run", "data=images", f"data.path={tmp_path}", "data.weight=w", f"data.flatten={str(flatten).lower()}", NET)
    model, whole = pquant.load(folder), torch.cat([part.tensors[0] for part in vars(splits_of(folder)).values() if hasattr(part, "tensors")])
    made = model.inputs(x)
    assert made.shape[1:] == ((90,) if flatten else (3, 5, 6)) and len(whole) == 60
    assert all(torch.isclose(made, row, atol=1e-5).flatten(1).all(1).any() for row in whole)
    if not flatten:
        assert torch.equal(model.inputs(np.moveaxis(x, -1, 1)), made)
    predict.main([f"run={folder}", f"data.path={tmp_path}", f"output={tmp_path / 'p.csv'}"])
    right = model.predict(x).astype(str) == y.astype(str)
    assert f"accuracy {np.average(right, weights=np.arange(60) % 4):.4f}" in capsys.readouterr().out


def test_the_metric_of_a_table_is_weighted_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = table(tmp_path / "a.csv", "energy").assign(w=np.arange(300) % 5)
    frame.to_csv(tmp_path / "a.csv", index=False)
    folder = conduct(tmp_path / "run", "data=table", f"data.path={tmp_path / 'a.csv'}", "data.target=energy", "data.weight=w", NET)
    predict.main([f"run={folder}", f"data.path={tmp_path / 'a.csv'}", f"output={tmp_path / 'p.csv'}"])
    errors = np.square(pquant.load(folder).predict(frame) - frame["energy"].to_numpy())
    assert f"rmse {np.sqrt(np.average(errors, weights=frame['w'])):.6g}" in capsys.readouterr().out


def test_a_folder_runs_no_code_and_builds_only_what_is_allowed(classes: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    shutil.copytree(classes[0], evil, ignore=shutil.ignore_patterns("checkpoint*"))
    config = OmegaConf.load(evil / ".hydra" / "config.yaml")
    config.model = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}  # type: ignore[union-attr]
    OmegaConf.save(config, evil / ".hydra" / "config.yaml")
    with pytest.raises(ConfigError, match="may not build 'os.mkdir'"):
        pquant.load(evil)
    assert not (tmp_path / "made").exists()


def test_what_is_no_finished_run_is_refused_in_one_line(classes: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="load must be the folder of an earlier run"):
        pquant.load(tmp_path)
    copied = tmp_path / "copied"
    shutil.copytree(classes[0], copied)
    safetensors.torch.save_file({"x": torch.zeros(1)}, copied / "model.safetensors")
    with pytest.raises(ConfigError, match="do not fit the model"):
        pquant.load(copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="did not finish"):
        pquant.load(copied)


def test_predictions_are_written_and_measured_where_the_file_has_the_target(
    classes: tuple[Path, pd.DataFrame], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, frame = classes
    predict.main([f"run={folder}", f"data.path={place / 'kinds.csv'}", f"output={tmp_path / 'p.csv'}"])
    written = pd.read_csv(tmp_path / "p.csv")
    assert list(written) == ["prediction", "p(down)", "p(up)"] and np.allclose(written["p(up)"], pquant.load(folder).predict_proba(frame)[:, 1])
    accuracy = (written.prediction == frame.kind).mean()
    assert capsys.readouterr().out.splitlines() == [f"300 predictions in {tmp_path / 'p.csv'}", f"accuracy {accuracy:.4f}"]
    np.savez(tmp_path / "new.npz", x=frame[["mass", "pt", "eta"]].to_numpy()[:7])
    predict.main([f"run={folder}", f"data.path={tmp_path / 'new.npz'}", f"output={tmp_path / 'q.csv'}"])
    assert len(pd.read_csv(tmp_path / "q.csv")) == 7 and "accuracy" not in capsys.readouterr().out


def test_columns_of_arrays_are_found_by_their_names(classes: tuple[Path, pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, frame = classes
    names = ["eta", "other", "mass", "pt"]
    x = frame.assign(other=9.0)[names].to_numpy()
    np.savez(tmp_path / "new.npz", x=x, features=names)
    predict.main([f"run={folder}", f"data.path={tmp_path / 'new.npz'}", f"output={tmp_path / 'p.csv'}"])
    assert np.allclose(pd.read_csv(tmp_path / "p.csv")["p(up)"], pquant.load(folder).predict_proba(frame)[:, 1])
    np.savez(tmp_path / "new.npz", x=x[:, :3], features=names[:3])
    with pytest.raises(ConfigError, match="new.npz: there is no column 'pt', which the model needs"):
        predict.main([f"run={folder}", f"data.path={tmp_path / 'new.npz'}", f"output={tmp_path / 'p.csv'}"])


def test_rows_of_unknown_classes_are_left_out_of_the_accuracy(
    classes: tuple[Path, pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, frame = classes
    frame[:10].assign(kind=["strange"] * 3 + list(frame.kind[3:10])).to_csv(tmp_path / "a.csv", index=False)
    predict.main([f"run={folder}", f"data.path={tmp_path / 'a.csv'}", f"output={tmp_path / 'p.csv'}"])
    accuracy = (pquant.load(folder).predict(frame[3:10]) == frame.kind[3:10]).mean()
    expected = f"accuracy {accuracy:.4f} of 7 rows; 3 have a class that the model does not know, such as 'strange'"
    assert capsys.readouterr().out.splitlines()[1] == expected
    frame[:2].assign(kind="strange").to_csv(tmp_path / "a.csv", index=False)
    predict.main([f"run={folder}", f"data.path={tmp_path / 'a.csv'}", f"output={tmp_path / 'p.csv'}"])
    assert capsys.readouterr().out.splitlines()[1].startswith("no accuracy of 0 rows")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mass,pt,eta,kind\n", "a.csv: the file has no rows"),
        ("mass,pt,kind\n1,2,up\n", "a.csv: there is no column 'eta', which the model needs"),
        ("mass,pt,eta\n1,2,3\n1,2 GeV,3\n", "a.csv: the column 'pt' must hold numbers"),
        ("mass,pt,eta\n1,2,3\n1,,3\n", "a.csv: row 1 has a missing or infinite value in column 'pt'"),
        ("mass;pt;eta\n1,0;2;3\n", "a.csv: the columns seem to be separated by ';': separate them by ','"),
    ],
)
def test_files_that_do_not_fit_are_named(classes: tuple[Path, pd.DataFrame], text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        predict.main([f"run={classes[0]}", f"data.path={tmp_path / 'a.csv'}", f"output={tmp_path / 'p.csv'}"])
    assert not (tmp_path / "p.csv").exists()


def test_predict_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    predict.main(["--help"])
    assert predict.USAGE in capsys.readouterr().out


def test_a_regression_is_measured_in_its_units(
    regression: tuple[Path, pd.DataFrame], place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.main([f"run={regression[0]}", f"data.path={place / 'energies.csv'}", f"output={tmp_path / 'p.csv'}"])
    error = pd.read_csv(tmp_path / "p.csv").prediction - regression[1].energy
    assert float(capsys.readouterr().out.split("rmse ")[1]) == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "predict needs run="),
        (["run=x"], "predict needs data.path="),
        (["rn=x"], "unknown argument of predict 'rn': did you mean 'run'"),
        (["run="], "run needs a value"),
        (["run=nowhere", "data.path=a.csv"], "run must be the folder of an earlier run"),
        (["run=x", "data.path=a.csv", "output=a.csv"], "output must be a .csv file other than data.path, got 'a.csv'"),
        (["run=x", "data.path=a.csv", "output=b.parquet"], "output must be a .csv file"),
    ],
)
def test_arguments_of_predict_are_checked(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        predict.main(arguments)


def test_a_run_starts_from_the_weights_of_another(classes: tuple[Path, pd.DataFrame], place: Path, tmp_path: Path) -> None:
    data = ["data=table", f"data.path={place / 'kinds.csv'}", "data.target=kind", NET]
    none = [
        "training.pretraining_epochs=0",
        "training.epochs=0",
        "training.fine_tuning_epochs=0",
        "scheduler=constant",
        "pruning=none",
        "quantization=none",
    ]
    begun = pquant.load(conduct(tmp_path / "begun", *data, *none, f"init_from={classes[0]}"))
    state = pquant.training.checkpoint.load_checkpoint(classes[0] / "checkpoint.pt")["state"]["model"]
    assert all(torch.equal(value, state[name]) for name, value in begun.module.state_dict().items() if name.endswith(("weight", "bias")))

    weights = {name: value for name, value in begun.module.state_dict().items() if name.endswith(("weight", "bias"))}
    safetensors.torch.save_file(weights, tmp_path / "net.safetensors")
    again = pquant.load(conduct(tmp_path / "again", *data, *none, f"init_from={tmp_path / 'net.safetensors'}"))
    assert all(torch.equal(value, weights[name]) for name, value in again.module.state_dict().items() if name in weights)

    with pytest.raises(ConfigError, match=r"init_from: 'layers.0.weight' is \(8, 3\) in .* and \(5, 3\) in the model"):
        conduct(tmp_path / "other", *data[:-1], "model.sizes=[null,5,null]", *none, f"init_from={classes[0]}")
    with pytest.raises(ConfigError, match="init_from must be the folder of an earlier run"):
        conduct(tmp_path / "missing", *data, *none, f"init_from={tmp_path / 'nowhere'}")
