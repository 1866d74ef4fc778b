"""The pages for people: links lead somewhere, and every page has its place."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import pquant

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


def test_the_api_reference_has_every_public_name_and_every_class_that_a_section_builds() -> None:
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {f"pquant.{name}" for name in pquant.__all__} <= set(listed)
    built = {yaml.safe_load(file.read_text()).get("_target_", "") for file in (ROOT / "conf").glob("*/*.yaml") if file.parent.name != "model"}
    assert {target.removesuffix(".from_config") for target in built if target.startswith("pquant.")} <= set(listed)


@pytest.fixture(scope="module")
def site() -> Any:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "docs" / "site.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_fields_have_the_values_of_presets_beside_the_defaults(site: Any) -> None:
    rows = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")] for row in site.table(pquant.quantization.Quantization)}
    assert rows["field"][3:5] == ["default", "presets"]
    assert rows["`default_weight_fractional_bits`"][3:5] == ["`0`", "fixed, hgq: `7`"]
    assert rows["`use_hgq`"][3:5] == ["`false`", "hgq: `true`"]
    assert rows["`use_real_tanh`"][4] == ""


def test_long_comments_of_code_stand_above_their_lines(site: Any) -> None:
    long = f"python run.py {'x' * 60}  # what it does\npython run.py 'a # b'\n"
    assert site.comments_above(long) == f"# what it does\npython run.py {'x' * 60}\npython run.py 'a # b'\n"
    assert site.comments_above("python run.py  # short\n") == "python run.py  # short\n"
    inside = f"def f():\n    return 1  # {'x' * 80}\n"
    assert site.comments_above(inside) == f"def f():\n    # {'x' * 80}\n    return 1\n"
