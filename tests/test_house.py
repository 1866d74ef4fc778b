"""Rules for the whole repository: no import circle, no memory address or compiled loop in the package, no path of a developer's machine."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOW_LEVEL = re.compile(r"data_ptr|ctypes|numba|llvmlite")
MACHINE_PATH = re.compile(r"/(?:work|workspace|repo|home|Users|root|tmp/\w+)/[\w.]")


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted((ROOT / "pquant").rglob("*.py"))}


def imported(module: str) -> Iterator[str]:
    """Yield the modules of the package that ``module`` imports anywhere: at its top, in functions, for type checkers."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import, which this test does not follow"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inside]
        else:
            continue
        yield from (name for name in names if name in MODULES and name != module)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module."""
    reached = {module: reachable(graph, module) for module in graph}
    components = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return sorted(sorted(component) for component in components if len(component) > 1)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = graph[left.pop()] - found
        found |= new
        left += new
    return found


def tracked_texts() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            try:
                yield name, (ROOT / name).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert "pquant.errors" in set(imported("pquant.settings"))


def test_the_package_has_no_import_circle() -> None:
    assert circles({module: set(imported(module)) for module in MODULES}) == []


def test_the_package_takes_no_memory_addresses_and_compiles_no_loops() -> None:
    files = [file for file in (ROOT / "pquant").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    found = {str(file.relative_to(ROOT)): sorted(set(LOW_LEVEL.findall(file.read_text(encoding="utf-8")))) for file in files}
    assert {name: words for name, words in found.items() if words} == {}


def test_no_file_names_a_path_of_a_developers_machine() -> None:
    found = [f"{name}: {match.group()}" for name, text in tracked_texts() for match in MACHINE_PATH.finditer(text)]
    assert found == []
