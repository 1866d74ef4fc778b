"""Interpretation of the errors that launchers raise for the job of a trial."""

import re

from pquant.finetuning.trial_locks import error_line

LOST = {
    ("submitit", "UncompletedJobError"),
    ("ray", "WorkerCrashedError"),
    ("ray", "NodeDiedError"),
    ("ray", "LocalRayletDiedError"),
    ("joblib", "TerminatedWorkerError"),
}
"""The errors, by package and class, of jobs that ended without an error of their own: cancelled, killed, or on a machine that failed."""

NO_OUTPUT = re.compile(r"Job (\S+) .*?has not produced any output \(state: (.+?)\)", re.DOTALL)
"""Matches the first lines of submitit's error for such a job; the error contains the whole log of the job."""
TRACE = re.compile(r"with trace:\n-+\n(.*?)\n-+\n", re.DOTALL)
"""Matches the traceback in submitit's error for a job that raised an error."""


def is_lost(error: BaseException | None) -> bool:
    """Return whether a job ended without reporting an error of its own, so that its trial can resume in another job."""
    return (type(error).__module__.partition(".")[0], type(error).__name__) in LOST


def launch_error(error: BaseException) -> str:
    """Return an error of a launcher as one line, for the record of a trial."""
    if no_output := NO_OUTPUT.search(str(error)):
        return f"job {no_output[1]} ended without a result, in state {no_output[2]}"
    if trace := TRACE.search(str(error)):
        return trace[1].splitlines()[-1]
    return error_line(error)
