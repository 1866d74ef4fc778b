"""Compare finished runs: ``python -m pquant.report outputs/sweeps/tpe`` or ``python -m pquant.report <run> <run>... [--output page.html]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pquant.errors import ConfigError
from pquant.reporting.compare import load_runs, write_comparison
from pquant.reporting.luts import FEWEST, PAGE, write_luts


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and print its path."""
    parser = argparse.ArgumentParser(prog="python -m pquant.report", description="One page that compares finished runs; needs no network.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="folder", help="a run's folder, or one with runs below it, such as a sweep's")
    parser.add_argument("--output", type=Path, help="the page (default: compare.html in the only folder given, else in the current one)")
    given = parser.parse_args(arguments)
    page = given.output or (given.folders[0] if len(given.folders) == 1 else Path()) / "compare.html"
    try:
        runs = load_runs(given.folders)
        write_comparison(page, runs)
        fitted = write_luts(page.parent, f"{len(runs)} runs", {run.name: run.metrics for run in runs})
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(runs)} runs compared in {page}")
    exported = sum(run.metrics.get("rtl/luts_estimated") is not None for run in runs)
    if fitted:
        print(f"LUTs of {exported} exports fitted to their EBOPs in {page.with_name(PAGE)}")
    elif exported:
        print(f"no fit of LUTs to EBOPs: it needs {FEWEST} exports that differ in EBOPs, and {exported} of the runs have LUTs")


if __name__ == "__main__":
    main()
