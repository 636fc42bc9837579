"""Named models are pinned: by the hub's commit, and by digests of what decides their answers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import Hub, serve
from safetensors.torch import load_file, save_file
from toy_families import qwen2_vl

from pipelines.common.errors import DataError, SetupError
from pipelines.common.vlm.pinned import fetch, folder_digest
from pipelines.openpack.pretrain import BaseModel, make_base, read_base
from pipelines.openpack.settings import PretrainSettings

NAME = "someone/toy-vl"
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    made, processor = qwen2_vl()
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder))


def rewrite_version(folder: Path, version: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": version}, indent=4))


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})


def name_it(vlm: str, out: Path) -> BaseModel:
    make_base(vlm, out, PretrainSettings(), progress=lambda line: None)
    return read_base(out)


def test_another_version_of_transformers_is_the_same_model_and_other_weights_are_not(model: Path, tmp_path: Path):
    upgraded, changed, words = (copy_of(model, tmp_path / name) for name in ("upgraded", "changed", "words"))
    rewrite_version(upgraded, "9.9.9")
    change_weights(changed)
    (words / "tokenizer.json").write_text((words / "tokenizer.json").read_text() + " ")
    assert folder_digest(upgraded) == folder_digest(model)
    assert len({folder_digest(one) for one in (model, changed, words)}) == 3


def test_a_folder_whose_weights_changed_after_it_was_named_is_not_loaded(model: Path, tmp_path: Path):
    folder, out = copy_of(model, tmp_path / "model"), tmp_path / "base"
    named = name_it(str(folder), out)
    assert named.revision is None
    rewrite_version(folder, "9.9.9")
    assert named.place(out) == str(folder)
    assert name_it(str(folder), tmp_path / "again").digest == named.digest  # adapters and checkpoints stay
    change_weights(folder)
    with pytest.raises(DataError, match="the model has changed"):
        named.place(out)
    assert name_it(str(folder), tmp_path / "other").digest != named.digest  # for which adapters are refused


def test_a_folder_without_all_its_weights_is_refused(model: Path, tmp_path: Path):
    folder = copy_of(model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SetupError, match="weights are not here"):
        name_it(str(folder), tmp_path / "base")


@pytest.fixture
def cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with a commit of `NAME`, on a machine that is offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--someone--toy-vl"
    copy_of(model, repository / "snapshots" / FIRST)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(FIRST)
    return repository


def test_a_hub_name_stays_at_its_commit_when_the_branch_moves_on(model: Path, cache: Path, tmp_path: Path):
    said: list[str] = []
    make_base(NAME, tmp_path / "base", PretrainSettings(), progress=said.append)
    named = read_base(tmp_path / "base")
    assert (named.weights, named.revision) == (NAME, FIRST)
    assert named.digest == folder_digest(model)  # the same files in a folder are the same model
    assert any(f"the commit {FIRST} of the local cache is taken" in line for line in said)
    change_weights(copy_of(model, cache / "snapshots" / SECOND))
    (cache / "refs" / "main").write_text(SECOND)
    assert named.place(tmp_path / "base") == str(cache / "snapshots" / FIRST)
    newer = name_it(NAME, tmp_path / "newer")
    assert newer.revision == SECOND
    assert newer.digest != named.digest


def test_naming_a_model_of_the_hub_downloads_no_weights_and_later_the_named_commit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    changed = copy_of(model, tmp_path / "changed")
    change_weights(changed)
    with serve(Hub(NAME)) as hub:
        hub.files, hub.commit = {FIRST: model, SECOND: changed}, FIRST
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        files = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
        named = name_it(NAME, tmp_path / "base")
        assert (named.revision, named.digest) == (FIRST, folder_digest(model))
        assert "config.json" in hub.sent
        assert "model.safetensors" not in hub.sent
        hub.commit = SECOND  # someone pushes other weights
        loaded = Path(named.place(tmp_path / "base"))
        assert (loaded / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
        newer = name_it(NAME, tmp_path / "newer")
        assert (newer.revision, newer.digest) == (SECOND, folder_digest(changed))


def test_a_commit_or_name_that_cannot_be_had_says_what_to_do(cache: Path, tmp_path: Path):
    with pytest.raises(SetupError, match=f"{NAME} at {SECOND}: .*HF_HOME, HF_ENDPOINT"):
        fetch(NAME, SECOND)
    with pytest.raises(SetupError, match=r"someone/else: .*HF_HOME, HF_ENDPOINT"):
        name_it("someone/else", tmp_path / "base")
    (cache / "snapshots" / FIRST / "model.safetensors").unlink()
    with pytest.raises(SetupError, match="weights are not here"):
        fetch(NAME, FIRST)


def test_a_record_of_a_hub_name_without_its_commit_is_refused(tmp_path: Path):
    with pytest.raises(SetupError, match="run the stage base_model again"):
        BaseModel(NAME, NAME, "b1", 100, []).place(tmp_path)
