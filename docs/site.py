"""A hook of mkdocs that adds the README, the pages of experiments and benchmarks, and the reference of all fields to the site.

A link that works in the repository also works on the site; a link to a file without a page there becomes plain text.
"""

import posixpath
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

from pquant.config_help import class_of, fields, first_line
from pquant.experiment import Experiment
from pquant.quantization.quantizer import TensorFormat

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("experiments/**/*.md", "benchmarks/results/*.md", "experiments/**/*.svg", "experiments/**/*.png")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
FIELDS = re.compile(r"<!-- fields: (\S+) -->")
HEAD = ["| field | type | default | range | description |", "|---|---|---|---|---|"]


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from other folders, and the generated ones."""
    added = [File.generated(config, "index.md", content=(ROOT / "README.md").read_text())]
    for path in sorted(path for pattern in ELSEWHERE for path in ROOT.glob(pattern)):
        added.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    added.append(File.generated(config, "reference.md", content=reference()))
    for file in added:
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links of the repository into links of the site, and ``<!-- fields: a class -->`` into the table of its fields."""
    here = page.file.src_uri

    def on_site(link: re.Match[str]) -> str:
        mark, text, path, anchor = link.group(1), link.group(2), link.group(3), link.group(4) or ""
        if not path or "://" in path:
            return link.group(0)
        page_there = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(here)), path)))
        if files.get_file_from_path(page_there) is None:
            return text if (ROOT / posixpath.dirname(repository_path(here)) / path).exists() else link.group(0)
        return f"{mark}[{text}]({posixpath.relpath(page_there, posixpath.dirname(here) or '.')}{anchor})"

    return FIELDS.sub(lambda found: "\n".join(table(class_of(found.group(1)))), LINK.sub(on_site, markdown))


def repository_path(page: str) -> str:
    """Return the path in the repository of a page of the site."""
    if page == "index.md":
        return "README.md"
    return page if page.startswith(("experiments/", "benchmarks/")) else f"docs/{page}"


def site_path(path: str) -> str:
    """Return the page of the site for a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def reference() -> str:
    """Return the page of all sections, their choices and fields."""
    lines = [
        "# Every field",
        "",
        "Generated from the classes of the sections. `python run.py --cfg job` prints the same beside the values of a job.",
        "",
    ]
    lines += ["## The job", "", *table(Experiment, tuple(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())), ""]
    for group, files in groupby(sorted((ROOT / "conf").glob("*/*.yaml")), key=lambda file: file.parent.name):
        lines += [f"## {group}", "", *section(list(files)), ""]
    return "\n".join(
        [
            *lines,
            "## One tensor",
            "",
            "The fields of `quantization.layer_specific` for one tensor of a layer.",
            "",
            *table(TensorFormat),
            "",
        ]
    )


def section(files: list[Path]) -> Iterator[str]:
    """Yield the choices of a section, then the fields of each class that one of them builds."""
    targets: dict[str, None] = {}
    for file in files:
        text = file.read_text()
        own = yaml.safe_load(text)
        comment = " ".join(line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("#"))
        values = {key: value for key, value in own.items() if key not in ("defaults", "_target_", "_partial_")}
        yield f"- `{file.parent.name}={file.stem}`: {comment}" + "".join(f" `{key}: {_cell(value)}`" for key, value in values.items())
        targets |= {own["_target_"]: None} if own.get("_target_", "???") != "???" else {}
    for target in targets:
        cls = class_of(target)
        described = table(cls)
        yield from ["", f"### {cls.__name__}", "", f"`{target}`: {first_line(cls)}", ""]
        yield from described if len(described) > len(HEAD) else ["No fields."]


def table(cls: Any, without: tuple[str, ...] = ()) -> list[str]:
    """Return a Markdown table of the fields of a class."""
    rows = [field for field in fields(cls) if field.name not in without]
    columns = (("`{}`", "name"), ("{}", "type"), ("`{}`", "default"), ("{}", "range"), ("{}", "description"))
    cells = [[shape.format(_cell(getattr(row, name))) if getattr(row, name) else "" for shape, name in columns] for row in rows]
    return [*HEAD, *(f"| {' | '.join(row)} |" for row in cells)]


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("``", "`").replace("|", "\\|").split())
