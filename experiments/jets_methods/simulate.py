"""Write a set of simulated jets for ``data=jets`` and ``data=constituents``.

``python experiments/jets_methods/simulate.py <folder> [<jets>]`` needs ``uv sync --extra jets``; ``data=jets_simulated`` makes that set itself.
"""

import shutil
import sys
from pathlib import Path

from pquant.data import JetsSimulated


def main() -> None:
    """Simulate the jets, or take them from the cache, and copy ``features.npz``, ``constituents.npz`` and ``simulated.json`` into the folder."""
    folder, *count = sys.argv[1:]
    made = JetsSimulated(jets=int(count[0])) if count else JetsSimulated()
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file in made.simulated().iterdir():
        if file.suffix in (".npz", ".json"):
            shutil.copy(file, folder)


if __name__ == "__main__":
    main()
