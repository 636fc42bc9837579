"""BentoML's stores, in BENTOML_HOME: the adapter as a versioned model, and the bento that serves it.

Both versions are digests of content, so that equal content is stored once. What a bundle holds
(`pipelines.openpack.bundle`) and what goes into a bento (bentofile.yaml) do not belong here.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import digest, file_digest, folder_digests, read_json
from pipelines.openpack.bundle import NAME, BundleSettings, bundle_digest, write_bundle
from pipelines.openpack.calibrate import CALIBRATION, Calibration
from pipelines.openpack.finetune import read_adapter
from pipelines.openpack.grammar import GRAMMAR, Grammar
from pipelines.openpack.settings import EvaluationSettings

ROOT = Path(__file__).parents[1]
BENTOFILE = ROOT / "bentofile.yaml"
SERVICE = "packaging_service"  # BentoML's name for a bento of PackagingService


@dataclass(frozen=True)
class Bento:
    """What was stored: `files` are those of model and bento, `bytes` their size, `digest` stands for all content."""

    tag: str
    model_tag: str
    digest: str
    folder: str
    bytes: int
    files: list[Path]


def build(base: Path, adapter: Path) -> Bento:
    """Stores the folders of the stages base_model and adapter as the newest model, and builds the bento with it.

    The stage evaluation's folder lies beside them: what it ran with and on goes into the model. DataError where a
    folder is not complete, and where the evaluation was another adapter's.
    """
    os.environ.setdefault("BENTOML_HOME", str(ROOT / ".bentoml"))
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    settings, calibration, grammar, data = _as_evaluated(adapter, adapter.with_name("evaluation"))
    with tempfile.TemporaryDirectory() as temporary:
        bundle, sources = Path(temporary) / "bundle", Path(temporary) / "sources"
        info = write_bundle(base, adapter, bundle, settings, calibration, grammar, data)
        model = _store_model(bundle, asdict(info))
        _copy_sources(sources)
        bento = _store_bento(sources, str(model.tag))
    files = sorted(path for item in (model, bento) for path in Path(item.path).rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    return Bento(str(bento.tag), str(model.tag), bento.tag.version, bento.path, size, files)


def _as_evaluated(adapter: Path, evaluation: Path) -> tuple[BundleSettings, Calibration, Grammar, list[dict[str, Any]]]:
    """The settings, the calibration and the grammar that the figures were reached with, and where clips came from."""
    run = read_json(evaluation / "report.json")["run"]
    if run["adapter_digest"] != read_adapter(adapter).digest:
        cure = "Materialise `evaluation` again: nothing is served that was not evaluated."
        raise DataError("these are the figures of another adapter", file=evaluation / "report.json", cure=cure)
    scored = EvaluationSettings.load(evaluation / "settings.json")
    served = Calibration.load(evaluation / CALIBRATION), Grammar.load(evaluation / GRAMMAR)
    return BundleSettings(evaluation=scored), *served, run["data"]


def _store_model(bundle: Path, metadata: dict[str, Any]) -> Any:
    import bentoml

    version = bundle_digest(bundle)
    newest = _newest(bentoml.models, NAME, version)
    if newest and bundle_digest(Path(newest.path)) == version:
        return newest
    _make_room(bentoml.models, NAME, version)
    with bentoml.models.create(f"{NAME}:{version}", metadata=metadata) as model:
        shutil.copytree(bundle, model.path, dirs_exist_ok=True)
    return bentoml.models.get(f"{NAME}:{version}")


def _store_bento(sources: Path, model_tag: str) -> Any:
    import bentoml

    content = folder_digests(sources)
    version = digest([model_tag, file_digest(BENTOFILE), content])
    newest = _newest(bentoml.bentos, SERVICE, version)
    if newest and content.items() <= folder_digests(Path(newest.path) / "src").items():
        return newest
    _make_room(bentoml.bentos, SERVICE, version)
    return bentoml.bentos.build_bentofile(str(BENTOFILE), version=version, build_ctx=str(sources))


def _newest(store: Any, name: str, version: str) -> Any:
    """The store's newest item of this name, if it is of this version."""
    from bentoml.exceptions import BentoMLException

    with suppress(BentoMLException):  # there is none, or a killed process left half of one
        item = store.get(f"{name}:latest")
        return item if item.tag.version == version else None
    return None


def _make_room(store: Any, name: str, version: str) -> None:
    """Deletes an item that is broken, or whole but not the newest: BentoML calls the one newest that was made last."""
    from bentoml.exceptions import NotFound

    with suppress(NotFound):
        store.delete(f"{name}:{version}")


def _copy_sources(target: Path) -> None:
    """The files of bentofile.yaml's include list, alone: BentoML itself would walk through .venv and data for them."""
    for pattern in yaml.safe_load(BENTOFILE.read_text())["include"]:
        found = sorted(ROOT.glob(pattern))
        if not found:
            cure = "Put the file back, or take it off the list."
            raise SetupError(f"nothing in {ROOT} matches {pattern}", file=BENTOFILE, cure=cure)
        for path in found:
            place = target / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
