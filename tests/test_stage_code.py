"""A stage whose code changed has another version, or somebody said that its results are the same."""

import json
from pathlib import Path

import pytest

from assets.openpack import stage_code
from assets.openpack.versions import LIBRARIES, code_version
from pipelines.openpack.settings import STAGE_VERSIONS, ClipSettings


def test_the_code_of_every_stage_is_the_recorded_one():
    told = "\n".join(f"  {stage}: {', '.join(modules)}" for stage, modules in stage_code.differences().items())
    assert not told, (
        f"the code of these stages changed:\n{told}\n"
        "Raise the version of each whose results are others now (STAGE_VERSIONS in pipelines/openpack/settings.py), "
        "then record: python -m assets.openpack.stage_code [--same-results STAGE …]"
    )


def test_what_is_imported_inside_of_functions_counts_and_what_type_checkers_import_does_not():
    assert "pipelines.openpack.choreography" in stage_code.closure("raw_session")  # through simulate
    assert "pipelines.common.vlm.muon" in stage_code.closure("adapter")  # inside of functions, three modules deep
    assert "pipelines.common.vlm.muon" not in stage_code.closure("clips")
    assert "pipelines.openpack.settings" not in stage_code.closure("clips")


@pytest.fixture
def module(tmp_path: Path, monkeypatch) -> Path:
    """Stages of a project of two modules."""
    package = tmp_path / "pipelines" / "openpack"
    package.mkdir(parents=True)
    for entry in {entry for entries in stage_code.ENTRIES.values() for entry in entries}:
        (package / f"{entry}.py").write_text('"""A stage."""\nfrom pipelines.openpack.helper import work\n')
    (package / "helper.py").write_text('"""Helps."""\n\n\ndef work():\n    """Works."""\n    return 1  # one\n')
    monkeypatch.setattr(stage_code, "ROOT", tmp_path)
    monkeypatch.setattr(stage_code, "RECORDED", package / "stage_code.json")
    stage_code._tree.cache_clear()
    (package / "stage_code.json").write_text(json.dumps(stage_code.stage_code()))
    yield package / "helper.py"
    stage_code._tree.cache_clear()


def rewritten(module: Path, text: str) -> dict[str, list[str]]:
    module.write_text(text)
    stage_code._tree.cache_clear()
    return stage_code.differences()


def test_other_code_is_seen_and_other_words_are_not(module: Path):
    assert rewritten(module, '"""Is of help."""\ndef work():\n    # not two\n    return 1\n') == {}
    changed = rewritten(module, "def work():\n    return 2\n")
    assert changed == {stage: ["pipelines.openpack.helper"] for stage in stage_code.ENTRIES}


def test_a_change_is_recorded_with_a_raised_version_or_on_purpose_alone(module: Path, monkeypatch, capsys):
    monkeypatch.setitem(STAGE_VERSIONS, "clips", "raised")
    rewritten(module, "def work():\n    return 2\n")
    monkeypatch.setattr("sys.argv", ["stage_code", "--same-results", "shards"])
    stage_code.main()
    assert set(stage_code.differences()) == set(stage_code.ENTRIES) - {"clips", "shards"}
    assert "--same-results adapter" in capsys.readouterr().out


def test_a_library_that_changes_results_is_in_the_code_version(monkeypatch):
    before = {stage: code_version(stage, ClipSettings()) for stage in STAGE_VERSIONS}
    monkeypatch.setattr("assets.openpack.versions.version", lambda name: f"{name} of tomorrow")
    after = {stage: code_version(stage, ClipSettings()) for stage in STAGE_VERSIONS}
    assert all((before[stage] != after[stage]) is bool(LIBRARIES[stage]) for stage in STAGE_VERSIONS)
