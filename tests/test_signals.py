"""Signals end a run in good order, and one folder holds one run."""

import csv
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pquant.errors import ConfigError
from pquant.signals import Interrupted, graceful, prompt, requeue, submitit_job
from pquant.tracking.files import only_run_in

from .test_run import SHORT, run


@pytest.fixture(autouse=True)
def python_handles_sigint() -> Iterator[None]:
    """Handle SIGINT as Python does by default; a shell's jobs in the background inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_the_check(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, graceful() as check:
        check()
        os.kill(os.getpid(), number)
        reached = True
        check()
    assert reached and caught.value.exit_code == code and str(caught.value) == number.name
    assert isinstance(caught.value, KeyboardInterrupt) and signal.getsignal(number) is before


def test_a_second_signal_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, graceful():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert not isinstance(caught.value, Interrupted)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be Slurm's job 17; return the file in which a ``scontrol`` notes its arguments."""
    noted, script = tmp_path / "noted", tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$*" >> {noted}\necho "no such job" >&2\nexit ${{SCONTROL_EXIT:-0}}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return noted


def test_the_signal_of_a_pre_emption_asks_to_be_requeued_in_a_slurm_job_alone(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted) as caught, graceful() as check:
        os.kill(os.getpid(), signal.SIGUSR1)
        check()
    assert caught.value.requeues and not Interrupted(signal.SIGTERM).requeues
    monkeypatch.delenv("SLURM_JOB_ID")
    with graceful():
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_requeue_names_the_job_and_says_when_slurm_refuses(slurm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    requeue()
    assert slurm.read_text() == "requeue 17\n" and not caplog.messages
    monkeypatch.setenv("SCONTROL_EXIT", "1")
    requeue()
    monkeypatch.setenv("PATH", "")
    requeue()
    assert caplog.messages[0] == "scontrol requeue 17 failed: no such job\n" and "No such file" in caplog.messages[1]


def test_a_task_of_an_array_requeues_itself_alone(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert slurm.read_text() == "requeue 17_3\n"


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGTERM, ""), (signal.SIGUSR1, "requeue 17\n")])
def test_a_signal_ends_a_job_of_submitit_with_its_exit_code(number: signal.Signals, asked: str, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # as submitit's
    try:
        with graceful(), submitit_job():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "another launcher's job keeps the handler"
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        with pytest.raises(SystemExit) as ended, submitit_job(), prompt():
            os.kill(os.getpid(), number)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + number and (slurm.read_text() if slurm.exists() else "") == asked


@pytest.mark.slow
def test_a_pre_empted_run_is_requeued_once_and_goes_on(slurm: Path, tmp_path: Path) -> None:
    lines = ["import os, signal", "from pquant.tracking import NoTracker", "class Slurm(NoTracker):"]
    lines += ["    def log(self, row): row['epoch'] != 2 or os.kill(os.getpid(), signal.SIGUSR1)"]
    (tmp_path / "tests_slurm.py").write_text("\n".join(lines))
    command = [*SHORT, "resume=auto", f"hydra.run.dir={tmp_path / 'run'}"]
    environment = {"PQUANT_ALLOW": "tests_slurm", "PYTHONPATH": str(tmp_path)}
    stopped = run(*command, "tracker=none", "tracker._target_=tests_slurm.Slurm", check=False, **environment)
    assert stopped.returncode == 128 + signal.SIGUSR1 and "Traceback" not in stopped.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text()) == {"status": "interrupted"}
    run(*command, "tracker=none")
    assert slurm.read_text() == "requeue 17\n"
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]


def test_other_threads_leave_signals_alone() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with graceful() as check:
            check()
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def test_the_second_run_in_a_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with only_run_in(tmp_path):
        with pytest.raises(ConfigError, match="another run is using"), only_run_in(tmp_path):
            pass
    with only_run_in(tmp_path):
        pass


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "pareto").mkdir()
    unfinished, others = [".checkpoint.pt.0123abcd.tmp", "pareto/.epoch_0001.pt.deadbeef.tmp"], ["notes.tmp", ".mine.tmp", "checkpoint.pt"]
    for name in (*unfinished, *others):
        (tmp_path / name).touch()
    with only_run_in(tmp_path):
        assert [name for name in (*unfinished, *others) if (tmp_path / name).exists()] == others


def test_links_of_wandb_s_client_are_no_links_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "wandb" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "wandb" / "logs" / "debug.log").symlink_to(tmp_path / "elsewhere")
    with only_run_in(tmp_path / "run"):
        pass
    (tmp_path / "run" / "report.html").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="report.html is a link out of its folder"), only_run_in(tmp_path / "run"):
        pass
