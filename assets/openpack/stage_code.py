"""`python -m assets.openpack.stage_code`: records which code each stage's version stands for.

A stage counts as fresh while its version and settings are those of its last run. Whether a change of code gives other
results only a person knows, so the code that each stage imports is recorded beside the versions, and a test fails
where it changed and nobody has decided: raise the stage's version, or say that results are the same; then record.

Belongs here: the modules that a stage imports, directly or not, as digests of what they do (their syntax tree without
docstrings; comments and layout do not count), and the file of them. Format of `pipelines/openpack/stage_code.json`:
{stage: {"version", "modules": {module: digest}}}.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.common.console import run
from pipelines.common.files import digest, read_json, write_json
from pipelines.openpack.settings import STAGE_VERSIONS

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "pipelines" / "openpack" / "stage_code.json"
# where each stage begins; the bento has a digest of the files that it ships (`versions.service_code`)
ENTRIES = {
    "raw_session": ("sources", "simulate", "zenodo", "recordings"),
    "normalized_video": ("normalise",),
    "clips": ("clips",),
    "shards": ("shards",),
    "base_model": ("pretrain",),
    "adapter": ("finetune",),
    "evaluation": ("evaluate",),
}
# what no result comes from: settings are in the code version by their values; the others wait, stop, tell or refuse
WITHOUT_RESULTS = {
    "pipelines.openpack.settings",
    "pipelines.openpack.effective",
    "pipelines.openpack.as_evaluated",
    "pipelines.common.settings",
    "pipelines.common.layers",
    *(f"pipelines.common.{name}" for name in ("console", "disk", "errors", "locks", "machine", "orphans", "time_left")),
    "pipelines.common.vlm.progress",
    "pipelines.common.vlm.settings",
}


def stage_code() -> dict[str, dict[str, Any]]:
    """The record of the code as it is now."""
    return {
        stage: {"version": STAGE_VERSIONS[stage], "modules": {name: _digest(name) for name in sorted(closure(stage))}}
        for stage in ENTRIES
    }


def differences() -> dict[str, list[str]]:
    """By stage the modules that are not as recorded; stages whose version was raised since are named too."""
    recorded, now = read_json(RECORDED), stage_code()
    found = {}
    for stage, code in now.items():
        before, after = recorded[stage]["modules"], code["modules"]
        changed = sorted(name for name in before | after if before.get(name) != after.get(name))
        if changed or recorded[stage]["version"] != code["version"]:
            found[stage] = changed
    return found


def closure(stage: str) -> set[str]:
    """Names of this project's modules that the stage imports, at the top of a module or inside of a function."""
    found: set[str] = set()
    waiting = [f"pipelines.openpack.{entry}" for entry in ENTRIES[stage]]
    while waiting:
        name = waiting.pop()
        if name in found or name in WITHOUT_RESULTS:
            continue
        found.add(name)
        waiting += _imports(_tree(name))
    return found


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules of this project that are imported while the code runs; those for type checkers alone are not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if _file(one.name))
        elif isinstance(node, ast.ImportFrom) and node.module:
            if _file(node.module):
                yield node.module
            yield from (name for one in node.names if _file(name := f"{node.module}.{one.name}"))
        yield from _imports(node)


def _digest(name: str) -> str:
    tree = _tree(name)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0].value if isinstance(body, list) and body and isinstance(body[0], ast.Expr) else None
        if isinstance(body, list) and isinstance(first, ast.Constant) and isinstance(first.value, str):
            del body[0]  # a docstring; what is left begins with none, so that the tree may come here again
    return digest(ast.dump(tree))


@cache
def _tree(name: str) -> ast.Module:
    file = _file(name)
    assert file
    return ast.parse(file.read_text(encoding="utf-8"))


def _file(name: str) -> Path | None:
    """Of a module of `pipelines`; packages hold nothing but a docstring."""
    file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    return file if name.startswith("pipelines.") and file.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Record which code each stage's version stands for.")
    parser.add_argument("--same-results", nargs="*", default=[], metavar="STAGE", help="though its version stayed")
    same = parser.parse_args().same_results
    recorded, now = read_json(RECORDED) if RECORDED.is_file() else {}, stage_code()
    for stage, changed in differences().items() if recorded else ():
        raised = recorded[stage]["version"] != now[stage]["version"]
        if not (raised or stage in same):
            cure = f"Raise its version in STAGE_VERSIONS, or: --same-results {stage}"
            print(f"{stage}: {', '.join(changed)} changed. {cure}")
            now[stage] = recorded[stage]
    write_json(RECORDED, now)


if __name__ == "__main__":
    run(main)
