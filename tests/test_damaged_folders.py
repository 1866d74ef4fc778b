"""A run's folder with damaged files is read right or refused in one line, and never damaged further."""

import random
import shutil
from pathlib import Path

import pytest

from .command_server import Commands
from .test_resume import SHORT, contents

DAMAGES = 100
FILES = ["checkpoint.pt", "checkpoint.previous.pt", "summary.json", "metrics.csv", "status.json", "model.json", "model.safetensors", "report.html"]
FILES += [".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"]
JUNK = [b"", b"\0" * 64, b"{", b"[1, 2", b"null", b"a: [", b"\xff\xfe\x00", b"NaN", b"{'a': 1}", b"- !!python/object/apply:os.system [id]\n"]


@pytest.fixture(scope="module")
def whole(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = commands(*SHORT, "training.epochs=2", f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


def damage(folder: Path, draw: random.Random) -> str:
    """Damage one or two files in one way each; return what was done."""
    done = []
    for name in draw.sample(FILES, draw.choice([1, 1, 2])):
        path, way = folder / name, draw.choice(["cut", "flip", "junk", "remove", "folder"])
        content = bytearray(path.read_bytes())
        path.unlink()
        if way == "cut":
            path.write_bytes(content[: draw.randrange(len(content))])
        elif way == "flip":
            for _ in range(3):
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
        elif way == "junk":
            path.write_bytes(draw.choice(JUNK))
        elif way == "folder":
            path.mkdir()
        done.append(f"{way} {name}")
    return ", ".join(done)


def check(commands: Commands, whole: Path, tmp_path: Path, seeds: range) -> list[str]:
    """Return what went wrong with commands on folders that are damaged by these seeds."""
    found = []
    for seed in seeds:
        draw = random.Random(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(whole, folder)
        what = damage(folder, draw)
        before = contents(folder)
        command = draw.choice([["resume={}"], ["from_run={}", "tracker=none"], ["resume={}", "training.epochs=3"]])
        done = commands(*(one.format(folder) for one in command), f"hydra.run.dir={tmp_path / f'log {seed}'}")
        if done.code not in (0, 1) or "Traceback" in done.err or (done.code == 1 and len(done.err.splitlines()) > 2):
            found.append(f"{seed}: {what}: {' '.join(command)}: {done.code} {done.err[-600:]}")
        elif done.code == 1 and "folder" not in what and contents(folder) != before:
            found.append(f"{seed}: {what}: {' '.join(command)}: was refused and changed the folder: {done.err}")
    return found


def test_a_few_damaged_folders(commands: Commands, whole: Path, tmp_path: Path) -> None:
    assert not check(commands, whole, tmp_path, range(3))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_hundred_damaged_folders(part: int, commands: Commands, whole: Path, tmp_path: Path) -> None:
    assert not check(commands, whole, tmp_path, range(part, DAMAGES, 4))
