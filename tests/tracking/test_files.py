import csv
import errno
import json
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pquant.tracking import MetricsCsv, write_atomic, write_json
from pquant.tracking.files import BackgroundSync, plain


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_write_atomic_writes_text_and_bytes_and_replaces(tmp_path):
    write_atomic(tmp_path / "a", "é\n")
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    write_atomic(tmp_path / "a", b"\x00\x01")
    assert (tmp_path / "a").read_bytes() == b"\x00\x01"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "summary.json"
    path.write_text("old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_what_is_written_is_synced_in_the_background_in_order_before_what_comes_after(tmp_path, monkeypatch):
    path, events, gates = tmp_path / "a", [], [threading.Event(), threading.Event()]
    background = BackgroundSync(path)

    def slow(number):
        turn = len(events)
        gates[turn].wait(10)
        events.append(os.fstat(number).st_size)

    monkeypatch.setattr(os, "fsync", slow)
    write_atomic(path, "first", tmp_path / "before", background)
    assert path.read_text() == "first" and events == []
    gates[0].set()
    write_atomic(path, "second", tmp_path / "before", background)
    assert events == [5] and (tmp_path / "before").read_text() == "first"
    gates[1].set()
    background.wait()
    assert events == [5, 6]
    background.wait()


def test_what_did_not_arrive_is_an_error_of_the_next_write_and_of_the_wait_and_names_the_file(tmp_path, monkeypatch):
    def fail(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a"
    background = BackgroundSync(path)
    monkeypatch.setattr(os, "fsync", fail)
    write_atomic(path, "first", sync=background)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(path, "second", sync=background)
    assert caught.value.filename == str(path) and path.read_text() == "first" and os.listdir(tmp_path) == ["a"]
    write_atomic(path, "third", sync=background)
    with pytest.raises(OSError, match="No space left") as caught:
        background.wait()
    assert caught.value.filename == str(path)


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", "new")
    assert os.listdir(tmp_path) == []


def test_an_atomic_file_has_the_mode_of_any_other_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_write_json_is_strict_and_keeps_the_order_of_keys(tmp_path):
    values = {
        "z": torch.tensor(3),
        "a": np.float32(0.5),
        "tensor": torch.tensor([1.0, math.nan]),
        "inf": math.inf,
        "deep": {1: (True, None, -math.inf, np.int64(7))},
        "path": tmp_path,
        "text": "é</script>",
    }
    write_json(tmp_path / "x.json", values)

    def refuse(constant):
        raise AssertionError(f"not strict JSON: {constant}")

    read_back = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert list(read_back) == list(values)
    assert read_back == {
        "z": 3,
        "a": 0.5,
        "tensor": [1.0, None],
        "inf": None,
        "deep": {"1": [True, None, None, 7]},
        "path": str(tmp_path),
        "text": "é</script>",
    }


def test_plain_keeps_whole_numbers_whole():
    assert plain({"a": torch.tensor(2), "b": True}) == {"a": 2, "b": True}
    assert type(plain(torch.tensor(2))) is int and type(plain(True)) is bool


def test_csv_floats_come_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    values = [float(x) for x in torch.randn(50, dtype=torch.float64, generator=generator)] + [0.1 + 0.2, 1e-320, 1e300, -0.0, math.inf]
    metrics = MetricsCsv(tmp_path / "metrics.csv")
    for epoch, value in enumerate(values, 1):
        metrics.append({"epoch": epoch, "loss": value})
    read_back = [float(row["loss"]) for row in read(metrics.path)]
    assert [value.hex() for value in read_back] == [value.hex() for value in values]


def test_csv_single_precision_scalars_keep_their_value(tmp_path):
    metrics = MetricsCsv(tmp_path / "metrics.csv")
    metrics.append({"a": np.float32(0.1), "b": torch.tensor(0.1), "c": math.nan})
    row = read(metrics.path)[0]
    assert np.float32(row["a"]) == np.float32(0.1) and float(row["b"]) == float(torch.tensor(0.1)) and math.isnan(float(row["c"]))


def test_csv_header_is_the_union_of_keys_in_the_order_seen(tmp_path):
    metrics = MetricsCsv(tmp_path / "metrics.csv")
    metrics.append({"epoch": 1, "b": 0.5})
    metrics.append({"epoch": 2, "a": "x,\n"})
    metrics.append({"a": "y", "epoch": 3})
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "epoch,b,a"
    assert read(metrics.path) == [
        {"epoch": "1", "b": "0.5", "a": ""},
        {"epoch": "2", "b": "", "a": "x,\n"},
        {"epoch": "3", "b": "", "a": "y"},
    ]


def test_csv_rewrite_replaces_what_an_earlier_run_left(tmp_path):
    earlier = MetricsCsv(tmp_path / "metrics.csv")
    for epoch in range(1, 5):
        earlier.append({"epoch": epoch, "loss": 1 / epoch})
    resumed = MetricsCsv(tmp_path / "metrics.csv")
    resumed.rewrite(earlier.rows[:2])
    resumed.append({"epoch": 3, "loss": 0.25})
    assert [(row["epoch"], row["loss"]) for row in read(resumed.path)] == [("1", "1.0"), ("2", "0.5"), ("3", "0.25")]
    resumed.rewrite([])
    assert resumed.path.read_text() == "" and resumed.rows == []


def test_the_last_files_stay_open_so_that_giving_up_replaced_ones_takes_no_time_of_the_work(tmp_path, monkeypatch):
    path, closed = tmp_path / "a", []
    close = os.close
    monkeypatch.setattr(os, "close", lambda number: (closed.append((os.fstat(number).st_size, threading.current_thread())), close(number)))
    with BackgroundSync(path) as background:
        for size in range(1, 5):
            write_atomic(path, size * "x", tmp_path / "before", background)
        background.wait()
        assert [size for size, _ in closed] == [1, 2]
        assert threading.main_thread() not in [thread for _, thread in closed]
    assert [size for size, _ in closed] == [1, 2, 3, 4]


def test_the_end_of_the_context_tells_what_did_not_arrive_but_hides_no_other_error(tmp_path, monkeypatch):
    def fail(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"), BackgroundSync(tmp_path / "a") as background:
        write_atomic(tmp_path / "a", "first", sync=background)
    with pytest.raises(KeyboardInterrupt), BackgroundSync(tmp_path / "a") as background:
        write_atomic(tmp_path / "a", "second", sync=background)
        raise KeyboardInterrupt
