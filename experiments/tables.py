"""What the tables of all experiments share."""

import statistics
from collections.abc import Sequence
from pathlib import Path

END = "<!-- end -->"


def spread(values: Sequence[float], form: str) -> str:
    """Return mean and standard deviation as text, "-" for no values."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{form}} ± {deviation:{form}}"


def insert(page: Path, command: str, table: str) -> None:
    """Put a table into a page, between the comment that names the command which makes it and the next ``<!-- end -->``."""
    begin = f"<!-- table: {command} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{table}{END}{rest.split(END, 1)[1]}")
