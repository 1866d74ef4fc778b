import json
import logging
import os
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pquant
from pquant.errors import ConfigError
from pquant.export.weights import save_model
from pquant.quantization import Quantization
from pquant.tracking import WandbTracker
from pquant.tracking.panels import copies_in, histograms
from pquant.tracking.wandb import logged_in

KEY = "0123456789abcdef0123456789abcdef01234567"
EIGHTHS = Quantization(default_weight_keep_negatives=True, default_weight_fractional_bits=3)
SERVER = "https://api.wandb.ai"


class FakeRun:
    def __init__(self, broken: bool = False) -> None:
        self.broken, self.calls, self.summary = broken, [], {}

    def log(self, row, step):
        if self.broken:
            raise ConnectionResetError("the service died")
        self.calls.append((row, step))

    def finish(self, exit_code):
        self.calls.append(exit_code)


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def fake(monkeypatch):
    module = SimpleNamespace(run=FakeRun(), options={}, error=None)

    def init(**options):
        if module.error:
            raise module.error
        module.options = options
        return module.run

    settings = lambda **options: SimpleNamespace(base_url=SERVER, **options)  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=settings))
    return module


def test_a_run_is_handed_over_whole(fake, tmp_path):
    tracker = WandbTracker(project="p", group="g", name="n")
    tracker.start(tmp_path, {"seed": 1})
    tracker.log({"epoch": 7, "val/accuracy": 0.5})
    tracker.summary({"test/accuracy": 0.75})
    tracker.finish("finished")
    assert {name: fake.options[name] for name in ("project", "group", "name", "dir", "config", "mode")} == {
        "project": "p",
        "group": "g",
        "name": "n",
        "dir": tmp_path,
        "config": {"seed": 1},
        "mode": "offline",
    }
    assert vars(fake.options["settings"]) == {"base_url": SERVER, "console": "off", "silent": True}
    assert fake.run.calls == [({"epoch": 7, "val/accuracy": 0.5}, 7), 0]
    assert fake.run.summary == {"test/accuracy": 0.75}


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1), ("interrupted", 255)])
def test_the_exit_code_says_how_the_run_ended(fake, tmp_path, status, code):
    tracker = WandbTracker()
    tracker.start(tmp_path, {})
    tracker.finish(status)
    tracker.finish(status)
    assert fake.run.calls == [code]


@pytest.mark.parametrize(
    ("mode", "key", "environment", "expected"),
    [
        ("auto", "", "", "offline"),
        ("auto", KEY, "", "online"),
        ("auto", KEY, "offline", "offline"),
        ("auto", KEY, "disabled", "disabled"),
        ("auto", "", "online", "offline"),
        ("online", KEY, "disabled", "online"),
        ("online", "", "", "offline"),
        ("offline", KEY, "", "offline"),
        ("disabled", KEY, "", "disabled"),
    ],
)
def test_a_run_is_online_only_for_a_user_who_is_logged_in(fake, tmp_path, monkeypatch, mode, key, environment, expected):
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", environment)
    WandbTracker(mode=mode).start(tmp_path, {})
    assert fake.options["mode"] == expected


def test_a_login_is_found_in_the_netrc_file_for_the_right_host(tmp_path, monkeypatch):
    assert not logged_in(SERVER)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine github.com login user password x\n")
    assert not logged_in(SERVER)
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert logged_in(SERVER)
    assert logged_in("https://another.default.example")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert not logged_in(SERVER)
    netrc.write_text(f"machine wandb.example.org:8080 login user password {KEY}\n")
    assert logged_in(SERVER)
    netrc.write_text("machine login password machine")
    assert not logged_in(SERVER)


def test_an_init_that_fails_costs_one_warning(fake, tmp_path, caplog):
    fake.error = RuntimeError("no service")
    tracker = WandbTracker()
    with caplog.at_level(logging.WARNING):
        tracker.start(tmp_path, {})
        tracker.log({"epoch": 1})
        tracker.summary({"a": 1})
        tracker.finish("failed")
    assert [record.message for record in caplog.records] == ["Weights & Biases failed, the run continues without it: RuntimeError: no service"]


def test_a_service_that_dies_costs_one_warning(fake, tmp_path, caplog):
    fake.run = FakeRun(broken=True)
    tracker = WandbTracker()
    tracker.start(tmp_path, {})
    for epoch in (1, 2, 3):
        tracker.log({"epoch": epoch})
    tracker.finish("finished")
    assert len(caplog.records) == 1 and "the service died" in caplog.text
    fake.run = FakeRun()
    tracker.start(tmp_path, {})
    tracker.log({"epoch": 1})
    assert fake.run.calls == [({"epoch": 1}, 1)]


def test_a_missing_wandb_is_a_configuration_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="tracker=none"):
        WandbTracker().start(tmp_path, {})


def test_settings_stay_frozen_and_equal_after_a_run(fake, tmp_path):
    tracker = WandbTracker()
    tracker.start(tmp_path, {})
    assert tracker == WandbTracker() and "run" not in repr(tracker)
    with pytest.raises(AttributeError):
        tracker.project = "other"


def test_a_wrong_mode_is_refused():
    with pytest.raises(ConfigError, match=r"WandbTracker.mode .*did you mean 'online'"):
        WandbTracker(mode="onlin")


def test_an_offline_run_leaves_its_folder_says_nothing_and_keeps_the_key_out(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = WandbTracker(mode="offline")
    tracker.start(tmp_path, {"seed": 0})
    tracker.log({"epoch": 1, "stage": "train", "val/accuracy": 0.5})
    tracker.summary({"test/accuracy": 0.5})
    tracker.finish("finished")
    captured = capfd.readouterr()
    assert captured.out == "" and KEY not in captured.err
    written = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 1
    deadline = time.monotonic() + 20
    while b"val/accuracy" not in written[0].read_bytes():
        assert time.monotonic() < deadline, "W&B's own process has not written the row"
        time.sleep(0.1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_an_offline_run_keeps_report_layers_histograms_and_files(tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    pruned = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model = pquant.finalize(pquant.compress(pruned, None, EIGHTHS, torch.randn(5, 4)))
    save_model(model, tmp_path)
    (tmp_path / "report.html").write_text("<p>the report</p>")
    tracker = WandbTracker(mode="offline")
    tracker.start(tmp_path, {})
    tracker.log({"epoch": 1, "val/accuracy": 0.5})
    with caplog.at_level(logging.WARNING, logger="pquant"):
        tracker.summary({"test/accuracy": 0.5})
        tracker.finish("finished")
    assert [record.message for record in caplog.records if record.name.startswith("pquant.tracking")] == []
    (media,) = (tmp_path / "wandb").glob("offline-run-*/files/media")
    assert [path.read_text() for path in media.rglob("report*.html")] == ["<p>the report</p>"]
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    names = ["layers/table", "weights/0", "bits/0", "masks/2", "model.safetensors", "model.json"]
    deadline = time.monotonic() + 20
    while any(name.encode() not in written.read_bytes() for name in names):
        assert time.monotonic() < deadline, [name for name in names if name.encode() not in written.read_bytes()]
        time.sleep(0.1)
    copies = {path.read_bytes(): path for path in (tmp_path / "wandb" / "artifacts" / "staging").iterdir() if path.is_file()}
    for name in ("model.safetensors", "model.json", "report.html"):
        copy = copies[(tmp_path / name).read_bytes()]
        assert str(copy).encode() in written.read_bytes(), "the run refers to another copy"
    assert "WANDB_DATA_DIR" not in os.environ


def test_the_users_place_for_copies_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "mine"))
    with copies_in(tmp_path / "run"):
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "mine")
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "mine")


def test_histograms_have_each_weight_its_bits_and_what_each_output_keeps(tmp_path):
    model = pquant.compress(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), None, EIGHTHS)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, 0, 0, 0], [0.5, 0.25, 0.5, 0.25]]))
    model = pquant.finalize(model)
    save_model(model, tmp_path)
    found = dict(histograms(tmp_path, json.loads((tmp_path / "model.json").read_text())["layers"]))
    assert sorted(found) == ["bits/0", "masks/0", "weights/0"]
    assert found["weights/0"].tolist() == model[0].weight.flatten().tolist()
    assert found["masks/0"].tolist() == [0.25, 1.0]
    assert set(found["bits/0"].tolist()) == {model[0].weight_quantizer.mean_width()} and len(found["bits/0"]) == 8
