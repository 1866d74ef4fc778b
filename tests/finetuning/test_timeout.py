"""A trial that takes too long is ended."""

import subprocess
import sys
import time

import pytest

from pquant.finetuning.timeout import TrialTimeoutError, limited

from .conftest import ROOT, FakeJobs, Study

STUBBORN = """
import time
from pquant.finetuning import timeout

timeout.SECONDS_TO_END = 0.2
with timeout.limited(0.1, lambda reason: print(reason, flush=True)):
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""


def test_a_trial_that_ends_in_time_is_left_alone() -> None:
    for seconds in (None, 60.0):
        with limited(seconds, pytest.fail):
            result = 3
        assert result == 3


def test_an_error_ends_a_trial_that_waits_although_it_handles_errors() -> None:
    begin = time.monotonic()
    with pytest.raises(TrialTimeoutError, match="trial_timeout = 0.1 seconds"), limited(0.1, pytest.fail):
        try:
            time.sleep(60)
        except Exception:
            pytest.fail("the end of its time is no error of the trial")
    assert time.monotonic() - begin < 30


def test_a_process_that_cannot_be_ended_by_an_error_ends_with_the_reason() -> None:
    ended = subprocess.run([sys.executable, "-c", STUBBORN], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert "trial_timeout = 0.1 seconds" in ended.stdout


@pytest.mark.slow
def test_a_hung_trial_counts_as_failed_and_the_study_goes_on(study: Study, jobs: FakeJobs) -> None:
    jobs.before = lambda number: time.sleep(300 if number == 1 else 0)
    timeout = ["finetuning.trial_timeout=20", "finetuning.max_failure_rate=0.5"]
    study.start("finetuning=random", "finetuning.num_trials=3", "finetuning.early_stopping.type=null", *timeout)
    rows = study.rows()
    assert [row["state"] for row in rows] == ["complete", "failed", "complete"]
    assert rows[1]["failure"] == "TrialTimeoutError: not ended after finetuning.trial_timeout = 20 seconds"


@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_a_time_is_a_number_of_seconds(value: str, study: Study, jobs: FakeJobs) -> None:
    with pytest.raises(SystemExit) as caught:
        study.start("finetuning=random", f"finetuning.trial_timeout={value}")
    assert "trial_timeout" in str(caught.value) and not jobs.runs
