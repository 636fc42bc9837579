"""Which weights a name means: the commit of a model on the hub, and digests of the files that decide its answers.

Belongs here: finding, counting and fetching a model's files. How they are loaded (`load`) does not. Everything that
loads a named model gets a folder from here, so no later call can see another commit of it.

The digest is of each weight and tokenizer file's SHA-256, and of the content of its configurations without the version
of transformers that wrote them: the same weights saved again by another version are the same model, and the same files
from the hub and in a folder too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import digest, read_json

SMALL = ["*.json", "*.jinja", "*.txt", "*.model"]  # configurations, templates and tokenizers
FILES = ["*.safetensors", *SMALL]
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
WRITTEN_BY = {"transformers_version", "_name_or_path"}  # says who saved a configuration, and decides nothing

Say = Callable[[str], None]


def pin(name: str, say: Say = print) -> str:
    """The commit that hub name `name` stands for now; from the local cache where the hub is not asked or not reached,
    which is then said. SetupError where neither knows it."""
    from httpx2 import TransportError
    from huggingface_hub import model_info, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        model_info(name)  # by itself, the next call would take the cache without a word where the hub does not answer
        return Path(snapshot_download(name, allow_patterns=SMALL)).name
    except (HfHubHTTPError, OSError, TransportError, ValueError) as error:
        try:
            commit = Path(snapshot_download(name, local_files_only=True, allow_patterns=SMALL)).name
        except (OSError, ValueError):
            raise _not_to_be_had(name, error) from error
        say(f"the hub does not answer for {name} ({error}): the commit {commit} of the local cache is taken")
        return commit


def fetch(name: str, revision: str, *, weights: bool = True) -> Path:
    """The folder of that commit, downloaded where it is not cached; without weights the small files alone.

    SetupError where they cannot be had.
    """
    from httpx2 import TransportError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FILES if weights else SMALL))
    except (HfHubHTTPError, LocalEntryNotFoundError, TransportError) as error:
        raise _not_to_be_had(f"{name} at {revision}", error) from error
    if weights:
        weight_files(folder)
    return folder


def hub_digest(name: str, revision: str) -> str:
    """`folder_digest` of a commit, whose weights are not downloaded where the hub tells their SHA-256."""
    from httpx2 import TransportError
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        listed = model_info(name, revision=revision, files_metadata=True).siblings or []
    except (HfHubHTTPError, OfflineModeIsEnabled, TransportError):
        return folder_digest(fetch(name, revision))  # then all of it is in the cache, or this says what is missing
    told = {file.rfilename: file.lfs.sha256 for file in listed if file.lfs}
    folder = fetch(name, revision, weights=False)
    if not told.keys() >= (names := _weight_names(folder)):
        return folder_digest(fetch(name, revision))
    return _digest(folder, {name: told[name] for name in names})


def folder_digest(folder: Path) -> str:
    """Of the model in a folder; SetupError where it has no weights as safetensors, or not all of them."""
    return _digest(folder, {file.name: _sha256(file) for file in weight_files(folder)})


def require_unchanged(folder: Path, expected: str) -> None:
    """DataError where the model in `folder` is another than the one whose digest was written down."""
    if (found := folder_digest(folder)) != expected:
        cure = "Put the old files back; or run the stage base_model again, and train a new adapter."
        raise DataError(f"the model has changed: its digest is {found}, expected {expected}", file=folder, cure=cure)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, by name; SetupError where one is missing."""
    files = [folder / name for name in sorted(_weight_names(folder))]
    for file in files:
        if not file.is_file():
            cure = "Download the model again, or save it with `save_pretrained`: weights are read as safetensors alone."
            raise SetupError("the model's weights are not here", file=file, cure=cure)
    return files


def _weight_names(folder: Path) -> set[str]:
    index = folder / INDEX
    return set(read_json(index)["weight_map"].values()) if index.is_file() else {SINGLE}


def _digest(folder: Path, weights: dict[str, str]) -> str:
    small = sorted({file for pattern in SMALL for file in folder.glob(pattern)})
    return digest([weights, {file.name: _content(file) for file in small if file.name != INDEX}])


def _content(file: Path) -> Any:
    return _plain(read_json(file)) if file.name.endswith("config.json") else _sha256(file)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if name not in WRITTEN_BY}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _not_to_be_had(name: str, error: Exception) -> SetupError:
    cure = "Set VLM to `tiny`, a folder that holds a model, or a hub name that can be reached (HF_HOME, HF_ENDPOINT)."
    return SetupError(f"the model cannot be had ({error})", file=name, cure=cure)
