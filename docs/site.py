"""A hook of mkdocs that adds the README, the pages of experiments and benchmarks, and the reference of all fields to the site.

A link that works in the repository also works on the site; a link to a file without a page there becomes plain text.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

from pquant.config_help import Field, class_of, fields, first_line
from pquant.experiment import Experiment
from pquant.quantization.quantizer import TensorFormat

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("experiments/**/*.md", "benchmarks/results/*.md", "experiments/**/*.svg", "experiments/**/*.png")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
FIELDS = re.compile(r"<!-- fields: (\S+) -->")
COLUMNS = (("`{}`", "name"), ("{}", "type"), ("`{}`", "default"), ("{}", "range"), ("{}", "description"))
HEAD = ["| field | type | default | presets | range | description |", "|---|---|---|---|---|---|"]
BLOCK = re.compile(r"^(```(?:bash|python)\n)(.*?)(^```)", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"^(\s*)(\S.*?) +# (.+)$")
WIDTH = 80
ROLE = re.compile(r":(?:func|class|meth|mod|attr):<code>")


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

    with_tables = FIELDS.sub(lambda found: "\n".join(table(class_of(found.group(1)))), LINK.sub(on_site, markdown))
    return BLOCK.sub(lambda block: block.group(1) + comments_above(block.group(2)) + block.group(3), with_tables)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Remove the roles of reStructuredText, which docstrings have before names in code."""
    return ROLE.sub("<code>", html)


def comments_above(code: str) -> str:
    """Return the lines of a code block with each comment above its line, where the block has a line that would run off the page."""
    lines = code.splitlines()
    if max(map(len, lines), default=0) <= WIDTH:
        return code
    moved: list[str] = []
    for line in lines:
        found = COMMENT.match(line)
        if found and not any(found.group(2).count(quote) % 2 for quote in "'\""):
            indent, command, comment = found.groups()
            moved += [*([""] if moved and moved[-1] and not indent else []), f"{indent}# {comment}", f"{indent}{command}"]
        else:
            moved.append(line)
    return "\n".join(moved) + "\n"


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
        "Generated from the classes of the sections. The default is that of the class.",
        "The next column names the presets of `conf/` that set another value.",
        "`python run.py --cfg job` prints the same beside the values of a job.",
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
        comment = " ".join(line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("#"))
        target, values = preset(file)
        yield f"- `{file.parent.name}={file.stem}`: {comment}" + (
            "" if target else "".join(f" `{key}: {_cell(_yaml(values[key]))}`" for key in values)
        )
        targets |= {target: None} if target else {}
    for target in targets:
        cls = class_of(target)
        described = table(cls)
        yield from ["", f"### {cls.__name__}", "", f"`{target}`: {first_line(cls)}", ""]
        yield from described if len(described) > len(HEAD) else ["No fields."]


def preset(file: Path) -> tuple[str, dict[str, Any]]:
    """Return the class that a preset names, else "", and its values by dotted field, those of the presets that it extends included."""
    own = yaml.safe_load(file.read_text()) or {}
    target, values = "", dict[str, Any]()
    for base in own.get("defaults", []):
        if isinstance(base, str) and (file.parent / f"{base}.yaml").is_file():
            target, inherited = preset(file.parent / f"{base}.yaml")
            values |= inherited
    named = own.get("_target_", target)
    return "" if named == "???" else named, values | dict(_flat({key: own[key] for key in own if key not in ("defaults", "_target_", "_partial_")}))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


@cache
def presets(cls: Any) -> dict[str, dict[str, Any]]:
    """Return the values of each preset that builds a class, by the preset's name."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((ROOT / "conf").glob("*/*.yaml")):
        target, values = preset(file)
        if target and class_of(target) is cls:
            found[file.stem] = values
    return found


def table(cls: Any, without: tuple[str, ...] = ()) -> list[str]:
    """Return a Markdown table of the fields of a class, with the values of presets that differ from the defaults of the class."""
    return [*HEAD, *(f"| {' | '.join(_row(field, presets(cls)))} |" for field in fields(cls) if field.name not in without)]


def _row(field: Field, given: dict[str, dict[str, Any]]) -> list[str]:
    name, kind, default, interval, text = (shape.format(_cell(getattr(field, key))) if getattr(field, key) else "" for shape, key in COLUMNS)
    by_value: dict[str, list[str]] = {}
    for preset_name, values in given.items():
        value = values.get(field.name, {})
        if not isinstance(value, dict) and value != yaml.safe_load(field.default or "null"):
            by_value.setdefault(_yaml(value), []).append(preset_name)
    return [name, kind, default, "; ".join(f"{', '.join(names)}: `{_cell(value)}`" for value, names in by_value.items()), interval, text]


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("``", "`").replace("|", "\\|").split())
