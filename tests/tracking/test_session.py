"""Actions of a tracker in the background, and their order."""

import logging
import threading

import pytest

from pquant.tracking.session import Session


def session(run: list[str]) -> Session[list[str]]:
    new: Session[list[str]] = Session("A service")
    new.begin(new.folder, lambda: run)
    return new


def test_work_goes_on_while_a_thing_is_done_and_the_next_one_waits_for_it() -> None:
    done, gate, first = session([]), threading.Event(), []

    def slow(run: list[str]) -> None:
        gate.wait(10)
        run.append("first")
        first.append(threading.current_thread())

    done.do_in_background(slow)
    assert done.run == []
    gate.set()
    done.do(lambda run: run.append("second"))
    assert done.run == ["first", "second"] and first != [threading.main_thread()]
    done.do_in_background(lambda run: run.append("third"))
    run = done.run
    done.end(lambda run: run.append("last"))
    assert run == ["first", "second", "third", "last"] and done.run is None
    assert not first[0].is_alive()


def test_a_failure_in_the_background_is_logged_once_and_the_run_continues_without_the_service(caplog: pytest.LogCaptureFixture) -> None:
    done, calls = session([]), []

    def fail(run: list[str]) -> None:
        calls.append(run)
        raise ConnectionError("gone")

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            done.do_in_background(fail)
        done.end(fail)
    assert len(calls) == 1 and [record.getMessage() for record in caplog.records] == [
        "A service failed, the run continues without it: ConnectionError: gone"
    ]
