import hashlib
import io
import json
import socket
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
import torch

import pquant.data.jets as module
from pquant.data import Jets
from pquant.errors import ConfigError

NAMES = np.array(["w", "g", "z", "q", "t"])


def jets(count: int = 100, features: int = 16) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).normal(3, 2, (count, features)), NAMES[np.arange(count) % 5]


def test_a_csv_and_an_npz_file_give_the_same_with_classes_in_sorted_order(tmp_path: Path) -> None:
    x, y = jets()
    np.savez(tmp_path / "jets.npz", x=x, y=y)
    pd.DataFrame(x).assign(**{"class": y}).to_csv(tmp_path / "jets.csv", index=False)
    npz, csv = (Jets(path=str(tmp_path / f"jets.{suffix}")).load(0) for suffix in ("npz", "csv"))
    assert [len(part) for part in (npz.train, npz.validation, npz.test)] == [70, 10, 20]
    assert npz.input_shape == (16,)
    assert npz.num_classes == 5
    assert torch.bincount(npz.test.tensors[1]).tolist() == [4] * 5
    assert torch.allclose(npz.train.tensors[0], csv.train.tensors[0])
    assert torch.equal(npz.train.tensors[1], csv.train.tensors[1])
    raw = Jets(path=str(tmp_path / "jets.npz"), standardize=False).load(0)
    label = {tuple(row): "gqtwz".index(name) for row, name in zip(x.astype(np.float32).tolist(), y, strict=True)}
    assert raw.train.tensors[1].tolist() == [label[tuple(row)] for row in raw.train.tensors[0].tolist()]


def test_another_table_is_refused(tmp_path: Path) -> None:
    x, y = jets(features=3)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with pytest.raises(ConfigError, match="expected 16 features and 5 classes, got 3 features and the classes g, q, t, w, z"):
        Jets(path=str(tmp_path / "a.npz")).load(0)


def test_fetched_once_then_read_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(**wanted: object) -> SimpleNamespace:
        asked.append(wanted["data_id"])
        x, y = jets()
        return SimpleNamespace(data=x, target=y.astype(object), feature_names=[f"feature {at}" for at in range(16)])

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fetch)
    first, again = (Jets(root=str(tmp_path / "cache")).load(0) for _ in range(2))
    assert asked == [42468]
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["hls4ml_lhc_jets_hlf.npz"]
    assert torch.equal(first.train.tensors[0], again.train.tensors[0])
    assert first.described["features"] == again.described["features"] == [f"feature {at}" for at in range(16)]
    assert again.described["classes"] == ["g", "q", "t", "w", "z"] == list(again.classes)


@pytest.mark.parametrize("names", [["a", "b"], [1.0] * 16])
def test_names_that_are_not_those_of_the_features_are_refused(tmp_path: Path, names: list[object]) -> None:
    x, y = jets()
    np.savez(tmp_path / "a.npz", x=x, y=y, features=np.array(names))
    with pytest.raises(ConfigError, match="expected the names of 16 features as text, got features "):
        Jets(path=str(tmp_path / "a.npz")).load(0)


def test_without_network_the_error_says_how_to_give_a_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**wanted: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fail)
    with pytest.raises(ConfigError) as error:
        Jets(root=str(tmp_path / "cache")).load(0)
    assert str(error.value) == (
        f"OpenML data set 42468 is not in {tmp_path}/cache and could not be fetched (URLError: <urlopen error no route to host>); "
        "give a local copy: data.path=<csv or parquet with 16 features and a column 'class', or npz with x (N, 16) and y (N,)>"
    )
    assert not (tmp_path / "cache").exists()


@pytest.mark.filterwarnings("ignore:A network error occurred:UserWarning")
def test_the_real_call_gets_as_far_as_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fail(host: object, *others: object, **options: object) -> None:
        asked.append(host)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ConfigError, match=r"could not be fetched \(URLError: <urlopen error .*no such host.*>\); give a local copy"):
        Jets(root=str(tmp_path)).load(0)
    assert asked


class Response(io.BytesIO):
    def info(self) -> dict[str, str]:
        return {}


def openml(x: np.ndarray, y: np.ndarray) -> dict[str, bytes]:
    """Return what OpenML answers, by the end of the address."""
    names = [f"f{at}_mmdt" for at in range(x.shape[1])]
    head = ["@RELATION jets", *(f"@ATTRIBUTE {name} REAL" for name in names), f"@ATTRIBUTE class {{{','.join(sorted(set(y)))}}}", "@DATA"]
    arff = "\n".join([*head, *(",".join([*map(repr, row), label]) for row, label in zip(x.tolist(), y, strict=True)), ""]).encode()
    columns = [{"index": str(at), "name": name, "data_type": "numeric", "is_target": "false"} for at, name in enumerate(names)]
    columns.append({"index": str(len(names)), "name": "class", "data_type": "nominal", "is_target": "true", "nominal_value": sorted(set(y))})
    columns = [column | {"is_ignore": "false", "is_row_identifier": "false", "number_of_missing_values": "0"} for column in columns]
    described = {
        "id": "42468",
        "name": "hls4ml_lhc_jets_hlf",
        "description": "",
        "version": "1",
        "status": "active",
        "format": "ARFF",
        "file_id": "1",
    }
    described |= {"url": "https://openml.org/data/v1/download/1/jets.arff", "md5_checksum": hashlib.md5(arff).hexdigest()}
    qualities = [{"name": "NumberOfInstances", "value": str(len(y))}]
    answers = {"/data/42468": {"data_set_description": described}, "/features/42468": {"data_features": {"feature": columns}}}
    answers |= {"/qualities/42468": {"data_qualities": {"quality": qualities}}}
    return {"/jets.arff": arff} | {end: json.dumps(answer).encode() for end, answer in answers.items()}


def serve(monkeypatch: pytest.MonkeyPatch, x: np.ndarray, y: np.ndarray) -> Counter[str]:
    """Let scikit-learn get these jets instead of OpenML's, and count what it asks for."""
    asked: Counter[str] = Counter()
    answers = openml(x, y)

    def urlopen(request: object, *others: object, **options: object) -> Response:
        end = next(end for end in answers if request.full_url.endswith(end))  # type: ignore[attr-defined]
        asked[end] += 1
        return Response(answers[end])

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", urlopen)
    return asked


@pytest.mark.parametrize("with_pandas", [True, False])
def test_openml_s_file_is_downloaded_once_and_read_with_or_without_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_pandas: bool) -> None:
    x, y = jets()
    asked = serve(monkeypatch, x, y)
    if not with_pandas:
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        monkeypatch.setitem(sys.modules, "pandas", None)
    splits = Jets(root=str(tmp_path), standardize=False).load(0)
    assert asked == dict.fromkeys(["/data/42468", "/features/42468", "/qualities/42468", "/jets.arff"], 1)
    np.savez(tmp_path / "local.npz", x=x.astype(np.float32), y=y)
    local = Jets(path=str(tmp_path / "local.npz"), standardize=False).load(0)
    assert torch.equal(splits.train.tensors[0], local.train.tensors[0]) and torch.equal(splits.test.tensors[1], local.test.tensors[1])
    assert splits.features == tuple(f"f{at}_mmdt" for at in range(16)) and splits.classes == ("g", "q", "t", "w", "z")


def test_another_set_from_openml_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, *jets(features=3))
    with pytest.raises(ConfigError, match="what OpenML gave: expected 16 features and 5 classes, got 3 features"):
        Jets(root=str(tmp_path)).load(0)
    assert not list(tmp_path.iterdir())
