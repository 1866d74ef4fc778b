"""What errors of launchers say, in the words of the launchers."""

import pytest

from pquant.finetuning.launch_errors import is_lost, launch_error

CANCELLED = (
    "Job 7_0 (task: 0) with path /a/7_0_result.pkl\nhas not produced any output (state: CANCELLED by 0)\nError stream produced:\n----\nsrun: ..."
)
LINE = "-" * 22
RAISED = (
    f"Job (task=0) failed during processing with trace:\n{LINE}\nTraceback (most recent call last):\n  File\nKeyError: 'x'\n\n{LINE}\nYou can check"
)


def error(package: str, name: str, text: str) -> Exception:
    made: Exception = type(name, (RuntimeError,), {"__module__": f"{package}.core"})(text)
    return made


@pytest.mark.parametrize(
    ("given", "lost", "line"),
    [
        (error("submitit", "UncompletedJobError", CANCELLED), True, "job 7_0 ended without a result, in state CANCELLED by 0"),
        (error("submitit", "FailedJobError", RAISED), False, "KeyError: 'x'"),
        (error("submitit", "FailedJobError", "sbatch: error: no such account"), False, "FailedJobError: sbatch: error: no such account"),
        (error("ray", "NodeDiedError", "the node\nis gone"), True, "NodeDiedError: the node is gone"),
        (error("torch", "NodeDiedError", "another"), False, "NodeDiedError: another"),
    ],
)
def test_lost_jobs_are_told_from_failed_ones_and_each_is_one_line(given: Exception, lost: bool, line: str) -> None:
    assert is_lost(given) is lost and launch_error(given) == line


def test_the_names_of_lost_jobs_are_those_of_the_launchers() -> None:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    assert is_lost(TerminatedWorkerError("killed"))
    assert is_lost(pytest.importorskip("submitit").core.utils.UncompletedJobError(CANCELLED))
