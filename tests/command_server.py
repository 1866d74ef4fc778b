"""Commands as a user gives them, without the seconds that imports take: a process that has imported everything forks one child for each."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Self

ROOT = Path(__file__).parents[1]
SERVER = """
import json, os, runpy, sys, time
import hydra, pquant.config, pquant.finetuning.current_job, pquant.finetuning.sweep, pquant.finetuning.sweeper
for line in sys.stdin:
    arguments, folder = json.loads(line)
    start, child = time.perf_counter(), os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 0
        try:
            sys.argv = ["run.py", *arguments]
            runpy.run_path("run.py", run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start]), flush=True)
"""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


class Commands:
    """Runs commands one after the other; a context manager."""

    def __enter__(self) -> Self:
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PQUANT", "HYDRA"))}
        self.folder = tempfile.TemporaryDirectory()
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *variables.get("PYTHONPATH", "").split(os.pathsep)])},
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.server.communicate()
        self.folder.cleanup()

    def __call__(self, *arguments: str) -> Done:
        """Run ``python run.py`` with the arguments."""
        assert self.server.stdin and self.server.stdout
        print(json.dumps([arguments, self.folder.name]), file=self.server.stdin, flush=True)
        code, seconds = json.loads(self.server.stdout.readline())
        out, err = ((Path(self.folder.name) / name).read_text() for name in ("out", "err"))
        return Done(code, out, err, seconds)
