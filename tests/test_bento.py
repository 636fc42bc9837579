"""Bundles, the model store and the bento: content is the version, and nothing goes in that has no business there."""

import ast
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import toy_bento
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipelines.common.errors import DataError
from pipelines.common.files import folder_digests, read_json, write_json
from pipelines.openpack.bundle import BundleSettings, bundle_digest, read_bundle, write_bundle
from pipelines.openpack.settings import EvaluationSettings
from resources.bento import Bento, build

ROOT = Path(__file__).parents[1]
SETTINGS = BundleSettings(evaluation=EvaluationSettings(batch_size=3))
UNSEEN = {"bentoml", "bitsandbytes", "torchvision"}  # transformers loads the last two itself when it needs them


def _bundle(stages: Path, out: Path) -> Path:
    fitted = toy_bento.CALIBRATED, toy_bento.CYCLE
    write_bundle(stages / "base_model", stages / "adapter", out, SETTINGS, *fitted, toy_bento.DATA)
    return out


def _build(stages: Path) -> Bento:
    return build(stages / "base_model", stages / "adapter")


def _versions(kind: str, home: Path) -> set[str]:
    return {path.name for path in home.glob(f"{kind}/*/*/")}


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    return toy_bento.write_form(tmp_path / "stages")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return toy_bento.store(tmp_path_factory.getbasetemp() / "bentoml")


def test_a_bundle_is_read_as_it_was_written(stages: Path, tmp_path: Path) -> None:
    bundle = read_bundle(_bundle(stages, tmp_path / "bundle"))
    assert bundle.settings == SETTINGS
    assert bundle.calibration == toy_bento.CALIBRATED
    assert bundle.grammar == toy_bento.CYCLE
    assert (bundle.base / "model.safetensors").read_bytes() == b"base"
    assert (bundle.adapter / "adapter_model.safetensors").read_bytes() == b"adapter"
    assert not (bundle.adapter / "README.md").exists()
    info = bundle.info
    assert (info.base, info.base_digest, info.clips, info.data) == ("toy", "b1", 3, toy_bento.DATA)
    assert [len(names) for names in (info.label_sets["native"], info.label_sets["brief"])] == [11, 10]


def test_of_a_named_model_only_its_name_is_kept(tmp_path: Path) -> None:
    stages = toy_bento.write_form(tmp_path / "stages", weights="Qwen/Qwen2-VL-2B-Instruct")
    bundle = _bundle(stages, tmp_path / "bundle")
    assert [path.name for path in (bundle / "base").iterdir()] == ["base.json"]


def test_its_digest_follows_content_and_nothing_else(stages: Path, tmp_path: Path) -> None:
    first, again = _bundle(stages, tmp_path / "a"), _bundle(stages, tmp_path / "b")
    (again / "model.yaml").write_text("what BentoML puts beside it")
    assert bundle_digest(first) == bundle_digest(again)
    (again / "adapter" / "adapter_model.safetensors").write_bytes(b"changed")
    assert bundle_digest(first) != bundle_digest(again)
    other = _bundle(stages, tmp_path / "c")
    toy_bento.CALIBRATED.model_copy(update={"prior_weight": 0.5}).save(other / "calibration.json")
    assert bundle_digest(first) != bundle_digest(other)


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "notes.pkl"])
def test_pickles_are_refused(stages: Path, tmp_path: Path, name: str) -> None:
    (stages / "adapter" / name).write_bytes(b"\x80\x04")
    with pytest.raises(DataError, match=f"{name}: this does not belong .* never pickled"):
        _bundle(stages, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_adapter_of_another_base_is_refused(stages: Path, tmp_path: Path) -> None:
    base = stages / "base_model" / "base.json"
    write_json(base, {**read_json(base), "digest": "b2"})
    with pytest.raises(
        DataError, match=r"trained on toy \(b1\), and the base is toy \(b2\)\. Run the stage adapter again"
    ):
        _bundle(stages, tmp_path / "bundle")


def test_nothing_is_served_that_was_not_evaluated(stages: Path) -> None:
    adapter = stages / "adapter" / "adapter.json"
    write_json(adapter, {**read_json(adapter), "digest": "newer"})
    with pytest.raises(DataError, match=r"figures of another adapter\. Materialise `evaluation` again"):
        _build(stages)


def test_without_its_calibration_nothing_is_served(stages: Path) -> None:
    (stages / "evaluation" / "calibration.json").unlink()
    with pytest.raises(DataError, match=r"calibration\.json: the file is missing\. Run the stage that writes it"):
        _build(stages)


def test_without_its_grammar_nothing_is_served(stages: Path) -> None:
    (stages / "evaluation" / "grammar.json").unlink()
    with pytest.raises(DataError, match=r"grammar\.json: the file is missing\. Run the stage that writes it"):
        _build(stages)


def test_the_stored_model_holds_what_the_evaluation_ran_with(stages: Path, home: Path) -> None:
    EvaluationSettings(hypotheses=5).save(stages / "evaluation" / "settings.json")
    built = _build(stages)
    name, version = built.model_tag.split(":")
    folder = home / "models" / name / version
    bundle = read_bundle(folder)
    assert bundle.settings == BundleSettings(evaluation=EvaluationSettings(hypotheses=5))
    assert bundle.calibration == toy_bento.CALIBRATED
    assert version == bundle_digest(folder)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".yaml"}
    assert {path for path in built.files if path.is_relative_to(folder)} == {
        path for path in folder.rglob("*") if path.is_file()
    }
    assert built.bytes == sum(path.stat().st_size for path in built.files)


def test_equal_content_is_stored_once_and_the_last_one_built_is_the_newest(home: Path, tmp_path: Path) -> None:
    import bentoml

    one = toy_bento.write_form(tmp_path / "one", adapter=b"one")
    two = toy_bento.write_form(tmp_path / "two", adapter=b"two")
    first = _build(one)
    kept = [(path, path.stat().st_mtime_ns) for path in first.files]
    models, bentos = _versions("models", home), _versions("bentos", home)
    assert _build(one) == first
    assert [(path, path.stat().st_mtime_ns) for path in first.files] == kept
    assert (_versions("models", home), _versions("bentos", home)) == (models, bentos)
    second = _build(two)
    assert {first.model_tag, first.tag}.isdisjoint({second.model_tag, second.tag})
    for built in (first, second, first):
        assert _build(one if built is first else two) == built
        assert str(bentoml.models.get("packaging_vlm:latest").tag) == built.model_tag
        assert str(bentoml.get("packaging_service:latest").tag) == built.tag


def test_what_was_damaged_in_the_store_is_stored_again(stages: Path, home: Path) -> None:
    built = _build(stages)
    before = folder_digests(Path(built.folder) / "src")
    weights = next(path for path in built.files if path.name == "adapter_model.safetensors")
    weights.write_bytes(b"half")
    (Path(built.folder) / "src" / "service.py").unlink()
    assert _build(stages) == built
    assert weights.read_bytes() == b"adapter"
    assert folder_digests(Path(built.folder) / "src") == before


def test_a_killed_build_leaves_nothing_that_stops_the_next(stages: Path, home: Path) -> None:
    built = _build(stages)
    model = home / "models" / Path(built.model_tag.replace(":", "/"))
    for folder, only in ((model, "info.json"), (Path(built.folder), "README.md")):
        for path in folder.iterdir():
            if path.name != only:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert _build(stages) == built
    assert bundle_digest(model) == model.name


def test_a_bento_answers_with_the_model_that_it_was_built_with(home: Path, tmp_path: Path) -> None:
    first = _build(toy_bento.write_form(tmp_path / "one", adapter=b"three"))
    _build(toy_bento.write_form(tmp_path / "two", adapter=b"four"))
    code = f"import bentoml; print(bentoml.load({first.tag!r}).inner.model.stored.tag)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [first.model_tag]


def test_a_bento_holds_the_code_and_nothing_more(stages: Path, home: Path) -> None:
    folder = Path(_build(stages).folder)
    packed = {str(path.relative_to(folder / "src")) for path in (folder / "src").rglob("*") if path.is_file()}
    code = {path for path in (ROOT / "pipelines").rglob("*") if path.suffix in {".py", ".json", ".toml"}}
    page = {path for path in (ROOT / "pipelines" / "openpack" / "page").iterdir() if path.is_file()}
    assert packed == {
        *(str(path.relative_to(ROOT)) for path in code | page),
        "service.py",
        "pyproject.toml",
        "requirements-service.lock",
        "bentofile.yaml",  # BentoML writes it, defaults filled in
    }
    assert not (folder / "models").exists()
    pinned = set(_lines(ROOT / "requirements-service.lock"))
    assert pinned <= set((folder / "env" / "python" / "requirements.txt").read_text().splitlines())
    assert "BENTOML_DO_NOT_TRACK=True" in (folder / "env" / "docker" / "Dockerfile").read_text()


def test_its_packages_are_those_that_the_service_needs() -> None:
    """Exactly: what the modules that service.py reaches import, and what these packages require in turn."""
    locked = {_name(line): line for line in _lines(ROOT / "requirements.lock")}
    needed = [locked[name] for name in sorted(_closure(_imported("service") | UNSEEN))]
    assert _lines(ROOT / "requirements-service.lock") == needed


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _name(line: str) -> str:
    return canonicalize_name(Requirement(line).name)


def _imported(start: str) -> set[str]:
    """Distributions that the module `start` and our modules that it imports anywhere import."""
    todo, seen, outside = [start], set(), set()
    while todo:
        module = todo.pop()
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        if module in seen or not path.is_file():
            continue
        seen.add(module)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            todo += [name for name in names if name.startswith("pipelines.")]
            outside |= {name.partition(".")[0] for name in names} - {"pipelines"}
    distributions = packages_distributions()
    return {name for module in outside - sys.stdlib_module_names for name in distributions[module]}


def _closure(names: set[str]) -> set[str]:
    todo, done = [(name, "") for name in names], set()
    while todo:
        name, extra = todo.pop()
        if (canonicalize_name(name), extra) in done:
            continue
        done.add((canonicalize_name(name), extra))
        for requirement in map(Requirement, requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(requirement.name, one) for one in ("", *requirement.extras)]
    return {name for name, _ in done}
