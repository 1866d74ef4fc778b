"""The data source of jets that this package simulates with Pythia 8 and FastJet."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from rich.progress import Progress

from pquant.data.constituents import Constituents
from pquant.data.files import CACHE, expanded, save_npz
from pquant.data.jet_simulation import GENERATOR, PROCESSES, simulate
from pquant.data.jets import Jets
from pquant.data.splits import Splits
from pquant.data.splitting import Fractions
from pquant.errors import ConfigError
from pquant.installation import extra
from pquant.settings import schema, setting
from pquant.tracking.files import read_json, write_json

log = logging.getLogger(__name__)

PACKAGES = {"pythia8mc": "8.317.2", "fastjet": "3.5.2.0"}
"""The versions in the extra ``jets``. Other installed versions simulate other jets."""
INPUTS = ("features", "constituents")
RECORD = "simulated.json"


@schema("data", "jets_simulated")
@dataclass(frozen=True)
class JetsSimulated(Fractions):
    """Jets of five classes, g, q, t, w, z, simulated on first use and then read from a cache; the same ones for the same settings.

    Proton-proton collisions at 13 TeV by Pythia 8, with jets of about 1 TeV by FastJet (anti-kt, R = 0.8), without a detector. They are not those of
    ``data=jets``, whose generator and detector are others: compare accuracies on one and the same file only.

    Args:
        path: an npz file that is read instead, in the form of ``data=jets`` or ``data=constituents``; null: the jets are simulated.
        inputs: the inputs of a jet: its 16 high-level features (16,), or its 16 particles of highest transverse momentum (16, 3), with the share of
            the jet's transverse momentum, and rapidity and azimuth relative to the jet's axis.
        jets: number of jets to simulate, with as many of each class; a thousand take about 15 seconds.
        simulation_seed: seed of the simulation, which does not depend on the seed of the run.
        root: the folder of the cache.
    """

    path: str | None = None
    inputs: Literal["features", "constituents"] = "features"
    jets: int = setting(40_000, ge=50)
    simulation_seed: int = setting(2026, ge=1, le=900_000_000)
    root: str = CACHE

    def load(self, seed: int) -> Splits:
        """Return the splits.

        Raises:
            ConfigError: Pythia or FastJet is not installed and the jets are not in the cache, or the file is not one of jets.
        """
        path = self.path or str(self.simulated() / f"{self.inputs}.npz")
        shared = {field.name: getattr(self, field.name) for field in fields(Fractions)}
        source = Jets(path=path, **shared) if self.inputs == "features" else Constituents(path=path, **shared)
        return source.load(seed)

    def simulated(self) -> Path:
        """Return the folder of the jets in the cache; simulate them if they are missing or damaged."""
        settings = {"jets": self.jets, "seed": self.simulation_seed, "generator": GENERATOR, "versions": _versions()}
        settings = json.loads(json.dumps(settings))
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        folder = expanded(self.root, "data.root") / f"jets_simulated_{key}"
        if not _is_whole(folder):
            self._require_packages()
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                if not _is_whole(folder):
                    self._fill(folder, settings)
        return folder

    def _fill(self, folder: Path, settings: dict[str, Any]) -> None:
        """Write both files, and last a record of their settings and checksums, without which they are ignored."""
        log.info("simulating %d jets into %s", self.jets, folder)
        with _bar(self.jets) as step:
            found = simulate(_counts(self.jets), self.simulation_seed, step)
        save_npz(folder / "features.npz", x=found["x"], y=found["y"], features=found["features"])
        save_npz(folder / "constituents.npz", x=found["constituents"], y=found["y"])
        write_json(folder / RECORD, settings | {"sha256": {name: _digest(folder / f"{name}.npz") for name in INPUTS}})

    def _require_packages(self) -> None:
        missing = [name for name in PACKAGES if _installed(name) is None]
        if missing:
            message = f"{' and '.join(missing)}: {extra('jets')}, or give a file: data.path=<npz with x (N, 16) and y (N,)>"
            raise ConfigError(f"data=jets_simulated needs {message}")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    return {name: _installed(name) or pinned for name, pinned in PACKAGES.items()}


def _counts(jets: int) -> dict[str, int]:
    """Return the number of jets of each class: equal parts, with a remainder given to the first classes."""
    share, left = divmod(jets, len(PROCESSES))
    return {name: share + (place < left) for place, name in enumerate(PROCESSES)}


def _is_whole(folder: Path) -> bool:
    """Return whether a folder has both files, undamaged; log a warning about damaged files."""
    if not (folder / RECORD).is_file():
        return False
    digests = read_json(folder / RECORD)["sha256"]
    damaged = [name for name in INPUTS if _digest(folder / f"{name}.npz") != digests[name]]
    if damaged:
        log.warning("%s in %s is damaged: the jets are simulated again", " and ".join(f"{name}.npz" for name in damaged), folder)
    return not damaged


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    """Show the progress of ``total`` jets on a terminal; yield a function to call after each jet."""
    with Progress() as progress:
        task = progress.add_task("simulating jets", total=total)
        yield lambda: progress.advance(task)
