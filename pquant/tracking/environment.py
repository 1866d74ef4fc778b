"""The environment of a run, recorded so that the run can be repeated."""

import hashlib
import itertools
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from pquant.installation import PROGRAM, VERSION
from pquant.tracking.files import plain

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "pquant")
CPU_INFO = Path("/proc/cpuinfo")


def environment() -> dict[str, str | int | None]:
    """Return ``git_commit``, ``platform``, ``cpu`` (its model), ``cores``, ``version/python`` and ``version/<package>``; None for a missing one.

    The commit is that of the repository of this package, else of the working directory.
    """
    versions = {f"version/{name}": _version(name) for name in PACKAGES}
    machine = {"platform": platform.platform(), "cpu": _cpu(), "cores": os.cpu_count()}
    return {"git_commit": _git_commit(), **machine, "version/python": platform.python_version(), **versions}


def versions() -> dict[str, str | None]:
    """Return the versions on which the numbers of a run depend: those of torch and of this package."""
    return {name: _version(name) for name in ("torch", "pquant")}


def config_hash(config: dict[str, Any]) -> str:
    """Return 12 hexadecimal digits that identify a configuration; the order of keys and resuming a run do not change them."""
    canonical = json.dumps({key: value for key, value in plain(config).items() if key != "resume"}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def difference(earlier: Any, now: Any, key: str = "") -> tuple[str, Any, Any]:
    """Return the dotted key of the first difference between two nested dictionaries, and its two values."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        for name in itertools.chain(now, earlier):
            if earlier.get(name) != now.get(name):
                return difference(earlier.get(name), now.get(name), f"{key}.{name}" if key else name)
    return key, earlier, now


def dotted(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested dictionary by dotted key."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def saved_command(folder: Path) -> str | None:
    """Return the command that repeats the run in a folder, from the overrides that were saved there; None if none can be read."""
    try:
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return shlex.join([*PROGRAM, *map(str, overrides)]) if isinstance(overrides, list) else None


def _cpu() -> str | None:
    """Return the model of the processor: from Linux, else from Python."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or None)


def _version(package: str) -> str | None:
    if package == "pquant":
        return VERSION
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    for folder in (str(Path(__file__).parent), "."):
        try:
            command = ["git", "-C", folder, "rev-parse", "--verify", "HEAD"]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            continue
    return None
