"""Imports go one way: `[tool.importlinter]` in pyproject.toml for the packages, here for the modules at the root."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"pipelines", "resources", "assets", "definitions", "service"}
MAY_IMPORT = {"definitions": {"assets"}, "service": {"pipelines"}}
NOT_AT_ALL = {"definitions": {"bentoml"}, "service": {"dagster"}}


def test_import_contracts_of_the_packages_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_modules_at_the_root_import_only_what_they_may(module: str) -> None:
    imported = _imported(ROOT / f"{module}.py")
    assert imported & OURS <= MAY_IMPORT[module]
    assert imported.isdisjoint(NOT_AT_ALL[module])


def test_nothing_imports_the_modules_at_the_root() -> None:
    files = [path for package in ("pipelines", "resources", "assets") for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 10
    assert [path for path in files if not _imported(path).isdisjoint(MAY_IMPORT)] == []


def _imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}}
