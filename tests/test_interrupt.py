"""Signals end a run in good order, and one folder holds one run."""

import os
import signal
import threading
from pathlib import Path

import pytest

from pquant.errors import ConfigError
from pquant.interrupt import Interrupted, graceful
from pquant.tracking.files import only_run_in


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
        with pytest.raises(ConfigError, match="another run is at work in"), only_run_in(tmp_path):
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
