"""The pages for people: links lead somewhere, and every page has its place."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for pattern in ("README.md", "docs/**/*.md", "experiments/**/*.md", "benchmarks/**/*.md") for path in ROOT.glob(pattern))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(CODE.sub("", page.read_text())) if "://" not in link]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        there = (page.parent / path) if path else page
        generated = there.resolve() == ROOT / "docs" / "reference.md"
        assert there.exists() or generated, f"{link}: no such file"
        if anchor and there.suffix == ".md" and not generated:
            assert anchor in anchors(there), f"{link}: no such heading"


def test_links_are_seen_at_all() -> None:
    assert sum(len(links(page)) for page in PAGES) > 10


def test_every_page_of_the_docs_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    named = set(re.findall(r"[\w./-]+\.md", str(nav)))
    written = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert written - named == set()


def test_every_method_has_a_page_with_its_picture() -> None:
    methods = {file.stem for file in (ROOT / "conf" / "pruning").glob("*.yaml") if not file.stem.endswith("_spec")} - {"none"} | {"fixed"}
    written = {page.stem: page.read_text() for page in (ROOT / "docs" / "methods").glob("*.md")}
    assert written.keys() == methods
    assert [name for name, text in written.items() if f"../images/methods/{name}.svg" not in text] == []
    assert [name for name, text in written.items() if "<!-- fields: pquant." not in text] == []
