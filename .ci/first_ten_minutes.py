"""Run the README's lines one by one in a fresh copy and environment, and check the output of each.

    python .ci/first_ten_minutes.py           the lines that take seconds (with NIGHTLY=1 also those that take minutes)

A line of the README that is in no table of this file is an error, so that the two stay equal.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NIGHTLY = os.environ.get("NIGHTLY") == "1"
AN_EARLIER_RUN = "outputs/2026-01-31/12-00-00"
RUN = r"(?s)Accuracy +9\d\.\d\d %.*Sparsity.*EBOPs.*Files +(outputs/\S+)"

EXPECTED = {
    "pip install uv && uv run python run.py": RUN,
    "uv run pytest": r"\d+ passed",
    ". .venv/bin/activate": "",
    "python run.py --help": r"== Sections.*\n(.*\n)*pruning .*wanda",
    "python run.py dry_run=true": r"Layers as finalized(.*\n)*.*layers\.0 .*PQDense.*64 x 64.*DST",
    "python run.py pruning=wanda pruning.sparsity=0.8": r"Sparsity +(79\.9|80\.0)\d %",
    "python run.py quantization=hgq quantization.hgq_beta=1e-5": RUN,
    "python run.py --cfg job -p pruning pruning=wanda": r"sparsity: 0\.8 +# fraction of the weights",
    f"python run.py resume={AN_EARLIER_RUN}": r"resuming after epoch 64(.*\n)*Accuracy",
    f"python run.py from_run={AN_EARLIER_RUN}": RUN,
    "the block in Python": r"Layers as finalized(.*\n)*.*PQDense",
}
"""The pattern that each line's output must match."""
MINUTES = {
    "python run.py training.baseline=true": r"float baseline 9\d",
    "python run.py -m seed=0,1,2": r"(?s)#2 : seed=2.*Accuracy",
    "python run.py fitcompress=on fitcompress.compression_goal=0.1": RUN,
}
"""The same for lines that take too long for every change."""
ELSEWHERE = {
    "python run.py data=table data.path=mine.csv data.target=y": "your data; tests/data/test_table.py",
    "python run.py data=constituents data.path=particles.npz model=jedi_linear": "your file; tests/models/test_particle_models.py",
    "python run.py data=images data.path=images.npz model=cnn data.augment=flip_crop": "your file; tests/data/test_images.py",
    "python run.py data=mnist data.path=mnist.npz training.batch_size=256": "needs MNIST",
    "python run.py data=cifar10 model=resnet20 optimizer=sgd": "needs the network",
    f"python run.py from_run={AN_EARLIER_RUN} from_epoch=42": "needs a front; tests/test_run.py",
    "python run.py experiment=jets_methods/dst_8bit data.path=jets.csv": "your file; tests/test_experiments.py",
    "python run.py export=rtl": "needs an extra; tests/export",
    "python run.py -m finetuning=tpe": "20 trials; tests/finetuning",
    f"python run.py predict run={AN_EARLIER_RUN} data.path=new.csv": "your file; tests/test_trained_model.py",
    f"python run.py init_from={AN_EARLIER_RUN}": "tests/test_trained_model.py",
    "python -m pquant.convert_config old.yaml": "your configuration; tests/test_convert_config.py",
    "PQUANT_ALLOW=my_package python run.py pruning=none pruning._target_=my_package.MyMethod": "your package; tests/test_add_a_method.py",
}
"""Lines that are not run here, and why, or where they are tested."""


def lines_of(readme: str) -> list[str]:
    """Return the lines of the README's bash blocks, without their comments, then the block in Python if there is one."""
    blocks = re.findall(r"^```bash\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"(^|\s+)# .*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line] + ["the block in Python"] * bool(python_of(readme))


def python_of(readme: str) -> str:
    """Return the README's block in Python."""
    return "".join(re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)[:1])


def unknown(readme: str) -> list[str]:
    """Return the README's lines that are in no table, and the lines of the tables that are not in the README."""
    known = {**EXPECTED, **MINUTES, **ELSEWHERE}
    lines = lines_of(readme)
    return [line for line in lines if line not in known] + [line for line in known if line not in lines]


def fresh_copy(folder: Path) -> None:
    """Copy the files of the working tree that git does not ignore, and create an empty virtual environment."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / "pquant" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "pquant" / name, follow_symlinks=False)
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)


def paste(line: str, activated: list[str], folder: Path) -> str:
    """Run one line in the fresh copy, in a shell that has run ``activated``; return its output, or exit with an error."""
    keep = ("HOME", "LANG", "TERM", "TMPDIR", "USER", "PIP_", "UV_", "SSL_", "HTTP", "http", "NO_PROXY", "no_proxy", "OMP_")
    drop = ("UV_PROJECT_ENVIRONMENT", "UV_RUN_RECURSION_DEPTH")
    environment = {key: value for key, value in os.environ.items() if key.startswith(keep) and key not in drop}
    environment["PATH"] = f"{folder / 'environment' / 'bin'}:{os.environ['PATH']}"
    environment["WANDB_MODE"] = "offline"
    command = ["bash", "-c", "\n".join(["set -e", *activated, line])]
    done = subprocess.run(command, cwd=folder / "pquant", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800)
    if done.returncode:
        sys.exit(f"'{line}' ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def main() -> None:
    """Run every line that is due."""
    readme = (ROOT / "README.md").read_text()
    if unknown(readme):
        sys.exit(f"README.md and {Path(__file__).name} differ: {unknown(readme)}")
    due = EXPECTED | (MINUTES if NIGHTLY else {})
    earlier, activated = "", list[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fresh_copy(folder)
        (folder / "pquant" / "outputs" / "own_loop.py").write_text(python_of(readme))
        for line in [line for line in lines_of(readme) if line in due]:
            start = time.perf_counter()
            command = "python outputs/own_loop.py" if line == "the block in Python" else line.replace(AN_EARLIER_RUN, earlier)
            printed = paste(command, activated, folder)
            found = re.search(due[line], printed, re.MULTILINE)
            if not found:
                sys.exit(f"'{line}' did not print {due[line]!r}, but:\n{printed}")
            if line.startswith(". "):
                activated.append(line)
            if due[line] == RUN and not earlier:
                earlier = found.group(1)
            if line == "uv run pytest":
                print(*printed.splitlines()[-30:], sep="\n")
            print(f"{time.perf_counter() - start:6.1f} s  {line}", flush=True)


if __name__ == "__main__":
    main()
