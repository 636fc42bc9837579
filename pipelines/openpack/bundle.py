"""What is needed to answer, in one folder: base, adapter, the evaluation's settings, calibration and grammar.

Belongs here: the format, written and read. Where a bundle is kept (BentoML's model store, by `resources.bento`) and
what answers with it (`predict`, `service.py`) do not. Format of the folder:

    base/           what the stage base_model wrote: base.json, and the model itself where it is the embedded one;
                    weights of a named model stay on the hub or in the folder that base.json names
    adapter/        what the stage adapter wrote: weights as safetensors, labels.json, and preparation.json:
                    uploads are prepared as the clips were that it was trained on
    settings.json   `BundleSettings`
    calibration.json  `Calibration` of this adapter, fitted under these settings
    grammar.json    `Grammar` of the sessions that it was trained on
    info.json       `Info`
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.common.errors import DataError
from pipelines.common.files import atomic_folder, digest, folder_digests, read_json, write_json
from pipelines.common.settings import Settings
from pipelines.openpack.calibrate import CALIBRATION, Calibration
from pipelines.openpack.finetune import read_adapter
from pipelines.openpack.grammar import GRAMMAR, Grammar
from pipelines.openpack.preparation import Preparation, read_preparation
from pipelines.openpack.pretrain import read_base
from pipelines.openpack.settings import EvaluationSettings
from pipelines.openpack.taxonomy import LABELS, Taxonomy

NAME = "packaging_vlm"
BASE, ADAPTER, SETTINGS, INFO = "base", "adapter", "settings.json", "info.json"
KEPT = {".json", ".jinja", ".safetensors", ".txt"}  # what loading a model needs: weights, configuration, tokenizer
LEFT_OUT = {".md"}  # PEFT writes a model card whose blanks nobody filled


class BundleSettings(Settings):
    """How clips are scored, so that a service answers as the evaluation did."""

    evaluation: EvaluationSettings


@dataclass(frozen=True)
class Info:
    """What a bundle is, for people and for `bentoml models get`.

    `clips` it was trained on; `data` is the shards' word on where their sessions came from; `label_sets` are the names
    that the model knows and the ones that answers are given in.
    """

    base: str
    base_digest: str
    adapter_digest: str
    clips: int
    data: list[dict[str, Any]]
    label_sets: dict[str, list[str]]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read; `base` and `adapter` are folders for `Predictor.load`."""

    base: Path
    adapter: Path
    settings: BundleSettings
    calibration: Calibration
    grammar: Grammar
    info: Info

    preparation: Preparation

    @property
    def taxonomy(self) -> Taxonomy:
        return Taxonomy.read(self.adapter / LABELS)


def write_bundle(
    base: Path,
    adapter: Path,
    out: Path,
    settings: BundleSettings,
    calibration: Calibration,
    grammar: Grammar,
    data: list[dict[str, Any]],
) -> Info:
    """Puts the folders of the stages base_model and adapter together in `out`, whole or not at all.

    DataError where a stage's folder is not complete, where the adapter is another base's, and for a file that may hold
    pickled objects, which run code when they are read.
    """
    of_base, of_adapter = read_base(base), read_adapter(adapter)
    if of_adapter.base_digest != of_base.digest:
        theirs, ours = f"{of_adapter.base} ({of_adapter.base_digest})", f"{of_base.name} ({of_base.digest})"
        what = f"the adapter was trained on {theirs}, and the base is {ours}"
        raise DataError(what, file=adapter, cure="Run the stage adapter again.")
    preparation = read_preparation(adapter, "adapter")
    if grammar.fps != preparation.clip_format.fps:
        what = f"it counts {grammar.fps} frames a second, the clips of the adapter {preparation.clip_format.fps}"
        raise DataError(what, file=GRAMMAR, cure="Run the stage evaluation again.")
    taxonomy = Taxonomy.read(adapter / LABELS)
    labels = {"native": list(taxonomy.names), "brief": list(taxonomy.brief)}
    info = Info(of_base.name, of_base.digest, of_adapter.digest, of_adapter.clips, data, labels)
    with atomic_folder(out) as folder:
        _copy(base, folder / BASE)
        _copy(adapter, folder / ADAPTER)
        settings.save(folder / SETTINGS)
        calibration.save(folder / CALIBRATION)
        grammar.save(folder / GRAMMAR)
        write_json(folder / INFO, asdict(info))
    return info


def read_bundle(folder: Path) -> Bundle:
    """DataError where a file is missing or is no JSON, and where the adapter does not say how clips are prepared."""
    settings, info = BundleSettings.load(folder / SETTINGS), Info(**read_json(folder / INFO))
    calibration, grammar = Calibration.load(folder / CALIBRATION), Grammar.load(folder / GRAMMAR)
    preparation = read_preparation(folder / ADAPTER, "adapter")
    return Bundle(folder / BASE, folder / ADAPTER, settings, calibration, grammar, info, preparation)


def bundle_digest(folder: Path) -> str:
    """Of a bundle's own files: what a store puts beside them does not count."""
    parts = {BASE, ADAPTER, SETTINGS, CALIBRATION, GRAMMAR, INFO}
    return digest({name: value for name, value in folder_digests(folder).items() if Path(name).parts[0] in parts})


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.suffix in LEFT_OUT:
            continue
        if not path.is_file() or path.suffix not in KEPT:
            cure = f"Give it as one of {', '.join(sorted(KEPT))}: weights as safetensors, never pickled."
            raise DataError("this does not belong in a model that is served", file=path, cure=cure)
        shutil.copyfile(path, target / path.name)  # not its mode: safetensors makes files that only the owner can read
