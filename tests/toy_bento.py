"""The folders that a bento is built from, real or only in form, and the bento served in a process of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import httpx
import psutil

from pipelines.common.files import write_json
from pipelines.openpack.boxes import Stretch
from pipelines.openpack.calibrate import CALIBRATION, Calibration, count_transitions
from pipelines.openpack.finetune import Adapter
from pipelines.openpack.grammar import GRAMMAR, learn
from pipelines.openpack.preparation import PREPARATION, Preparation
from pipelines.openpack.pretrain import BaseModel, read_base
from pipelines.openpack.settings import AllSettings, EvaluationSettings
from pipelines.openpack.taxonomy import LABELS, OPENPACK

DATA = [{"source": "simulated", "view": "video", "sessions": 2, "operations": 80, "seconds": 360.0}]
CALIBRATED = Calibration(
    transitions=count_transitions([], OPENPACK), operation_temperature=2.0, next_temperature=0.5, prior_weight=0.25
)
ROOT = Path(__file__).parents[1]
ORDER = (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
CYCLE = learn([[Stretch(op_id, 100 * i, 100 * i + 100) for i, op_id in enumerate(ORDER * 3)]], OPENPACK)
START_S = 300  # a machine that is busy with something else needs minutes to import torch


@cache
def store(home: Path) -> Path:
    """Sets BENTOML_HOME to `home` for this process; BentoML reads it once, so the first `home` stays."""
    os.environ["BENTOML_HOME"] = str(home)
    return home


def write_form(folder: Path, weights: str = "", adapter: bytes = b"adapter") -> Path:
    """Stages' folders with a few bytes instead of weights: enough for storing, not for answering."""
    base, tuned = folder / "base_model", folder / "adapter"
    base.mkdir(parents=True)
    tuned.mkdir()
    if not weights:
        (base / "model.safetensors").write_bytes(b"base")
    (tuned / "adapter_model.safetensors").write_bytes(adapter)
    (tuned / "README.md").write_text("[More Information Needed]")
    describe(folder, BaseModel("toy", weights, "b1", 100, []), adapter.hex())
    return folder


def write_toy(folder: Path, base: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Stages' folders with the real base model `base` and a real adapter on it, with random weights times `scale`."""
    import torch

    from pipelines.common.vlm.load import load
    from pipelines.common.vlm.lora import put_lora
    from pipelines.common.vlm.settings import LoraSettings

    shutil.copytree(base, folder / "base_model")
    torch.manual_seed(seed)
    tuned = put_lora(load(base, device="cpu").model, LoraSettings(rank=2), gradient_checkpointing=False)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:  # zero at first, when an adapter changes nothing
            torch.nn.init.normal_(weight)
            weight.data *= scale
    tuned.save_pretrained(folder / "adapter")
    describe(folder, read_base(base), f"a{seed + 1}")
    return folder


def describe(folder: Path, base: BaseModel, adapter_digest: str) -> None:
    write_json(folder / "base_model" / "base.json", asdict(base))
    adapter = Adapter(base.name, base.digest, adapter_digest, 10, 3, 1.0, None, [(1, 2.0)])
    write_json(folder / "adapter" / "adapter.json", asdict(adapter))
    write_json(folder / "adapter" / LABELS, OPENPACK.as_json())
    Preparation.of(AllSettings()).save(folder / "adapter" / PREPARATION)
    write_json(folder / "evaluation" / "report.json", {"run": {"adapter_digest": adapter_digest, "data": DATA}})
    EvaluationSettings(device="cpu").save(folder / "evaluation" / "settings.json")
    CALIBRATED.save(folder / "evaluation" / CALIBRATION)
    CYCLE.save(folder / "evaluation" / GRAMMAR)


@dataclass(frozen=True)
class Served:
    """A running service: its address, its process, the folder for its temporary files, its log."""

    url: str
    process: psutil.Process
    temporary: Path
    log: Path


@contextmanager
def serve(what: Path | str, folder: Path, **variables: str) -> Iterator[Served]:
    """Serves `what`, a bento's folder or the name of a service in the sources, as its own default is.

    It has nothing but `folder` to write into; its model store is `folder / "home"`.
    """
    for name in ("home", "tmp", "empty"):
        (folder / name).mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bentoml", "serve", str(what), "--port", str(port)]
    place = folder / "empty" if isinstance(what, Path) else ROOT
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            command, cwd=place, env={**environment(folder), **variables}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, folder / "log")
            yield Served(url, psutil.Process(process.pid), folder / "tmp", folder / "log")
        finally:
            process.terminate()
            process.wait(60)


def put_model(home: Path, stored: Path) -> str:
    """Puts a stored model's folder into the model store of `home` as the newest, as BentoML does; returns its name."""
    place = home / "models" / stored.parent.name
    shutil.copytree(stored, place / stored.name)
    (place / "latest").write_text(stored.name)
    return f"{stored.parent.name}:{stored.name}"


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BENTOML")}
    own = {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True", "TMPDIR": str(folder / "tmp")}
    return {**kept, **own}


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", timeout=5).is_success:
                return
        except httpx.TransportError:  # not listening yet, or accepted and not answered yet
            time.sleep(0.2)
    raise AssertionError(log.read_text())
