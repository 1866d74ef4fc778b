"""A PostgreSQL server of one's own: a cluster in a new folder, reached by a Unix socket in it alone, with a password."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

USER, PASSWORD = "postgres", "s3cret-w0rd"


class Postgres:
    """A server in ``folder``, run by the user ``owner``, as PostgreSQL refuses to be run by root."""

    def __init__(self, folder: Path, binaries: Path, owner: str | None) -> None:
        self.folder, self.binaries, self.owner = folder, binaries, owner
        (folder / "password").write_text(PASSWORD)
        if owner:
            for path in (folder, folder / "password"):
                shutil.chown(path, owner)
        self.call("initdb", "--pgdata", str(folder / "data"), "--username", USER, "--auth", "scram-sha-256", "--pwfile", str(folder / "password"))

    def call(self, command: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.binaries / command), *arguments], user=self.owner, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, timeout=300
        )

    def control(self, action: str, *arguments: str) -> None:
        self.call("pg_ctl", action, "--wait", "--pgdata", str(self.folder / "data"), "--log", str(self.folder / "log"), *arguments)

    def start(self) -> None:
        self.control("start", "--options", f"-c listen_addresses='' -c unix_socket_directories='{self.folder}'")

    def stop(self) -> None:
        self.control("stop", "--mode", "fast")

    @property
    def url(self) -> str:
        """The URL for Optuna; the password is in the variable DATABASE_PASSWORD."""
        return f"postgresql+psycopg://{USER}:${{oc.env:DATABASE_PASSWORD}}@/postgres?host={self.folder}"


def binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs, which Debian keeps out of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(path) for path in [shutil.which("initdb")] if path]
    return found[-1].parent if found else None


def installed() -> Path:
    """Return the folder of PostgreSQL's programs, installed by apt if there is none."""
    if not binaries() and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "--quiet"], check=True, timeout=600)
        subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", "postgresql"], check=True, timeout=600)
    return binaries() or pytest.skip("needs PostgreSQL: apt-get install postgresql")


@contextmanager
def running() -> Iterator[Postgres]:
    """Start a server, and stop it and remove it at the end."""
    programs = installed()
    with tempfile.TemporaryDirectory(prefix="pquant-postgres-", dir="/tmp") as folder:
        server = Postgres(Path(folder), programs, USER if os.geteuid() == 0 else None)
        server.start()
        try:
            yield server
        finally:
            server.stop()
