"""`service_throughput_vs_plain_handler`, `service_p99_vs_plain_handler`, `service_cold_start`: the service against
`bench.plain_handler`, on one machine, with one model, in one run.

Both are processes that are asked over HTTP, both up all the time, and take turns: whatever else the machine does meets
both. The model is of the embedded one's size, with random weights: speed does not depend on them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.files import folder_digests, write_json
from pipelines.common.media import VideoWriter
from pipelines.common.vlm.settings import LoraSettings
from pipelines.openpack.boxes import Stretch
from pipelines.openpack.bundle import NAME, BundleSettings, bundle_digest, write_bundle
from pipelines.openpack.calibrate import Calibration, count_transitions
from pipelines.openpack.effective import TINY
from pipelines.openpack.finetune import ADAPTER, Adapter
from pipelines.openpack.grammar import learn
from pipelines.openpack.preparation import PREPARATION, Preparation
from pipelines.openpack.pretrain import BASE, BaseModel
from pipelines.openpack.prompt import instruction
from pipelines.openpack.settings import PretrainSettings, load_settings
from pipelines.openpack.taxonomy import LABELS, OPENPACK

ROOT = Path(__file__).parents[1]
CLIENTS, REQUESTS, ROUNDS = 16, 64, 3  # at once; of a round; rounds of each side
ALONE = 150  # requests of one client to each side
START_S = 300


def throughput() -> dict[str, Any]:
    """Requests a second with 16 clients; the middle one of three rounds."""
    ours, other = (round(median(rates), 2) for rates in _measured()["rates"])
    return {"ours": ours, "other": other, "unit": "requests/s", "ratio": round(ours / other, 2)}


def p99() -> dict[str, Any]:
    """Seconds that 99 in 100 requests of one client take at most."""
    ours, other = (round(float(np.percentile(times, 99)), 4) for times in _measured()["times"])
    return {"ours": ours, "other": other, "unit": "s", "ratio": round(other / ours, 2)}


def cold_start() -> dict[str, Any]:
    """Seconds from the command to the first `ready`: processes, imports, model, and for ours its check."""
    ours, other = (round(seconds, 2) for seconds in _measured()["starts"])
    return {"ours": ours, "other": other, "unit": "s", "ratio": round(other / ours, 2)}


@cache
def _measured() -> dict[str, tuple[Any, ...]]:
    """Of the service and of the plain handler, in this order: `rates`, `times`, `starts`."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        bundle, body = _stored(Path(folder), home), _body(Path(folder) / "clip.mp4")
        bento = [sys.executable, "-m", "bentoml", "serve", "service:PackagingService", "--port"]
        plain = [sys.executable, "-m", "bench.plain_handler", str(bundle)]
        sides = [stack.enter_context(_served(command, home)) for command in (bento, plain)]
        asks = [_asking(url, body) for url, _ in sides]
        for ask in asks:
            ask()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ALONE):
            for ask, taken in zip(asks, times, strict=True):
                taken.append(_seconds(ask))
        rates: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for ask, taken in zip(asks, rates, strict=True):
                taken.append(REQUESTS / _seconds(lambda ask=ask: _together(ask)))
        return {"rates": rates, "times": times, "starts": tuple(start for _, start in sides)}


def _together(ask: Callable[[], None]) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        for done in [clients.submit(ask) for _ in range(REQUESTS)]:
            done.result()


def _asking(url: str, body: httpx.Request) -> Callable[[], None]:
    """Sends the clip and waits for the answer; the form is made once, so that clients cost little."""
    client = httpx.Client(timeout=START_S, limits=httpx.Limits(max_connections=CLIENTS))
    content, headers = body.read(), {"content-type": body.headers["content-type"]}
    return lambda: client.post(f"{url}/predict", content=content, headers=headers).raise_for_status() and None


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def _served(command: list[str], home: Path) -> Iterator[tuple[str, float]]:
    """A server's address, and after how many seconds it was ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, started = f"http://127.0.0.1:{port}", time.perf_counter()
    variables = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*command, str(port)], cwd=ROOT, env=variables, stdout=quiet, stderr=quiet)
    try:
        while not _ready(url):
            if process.poll() is not None or time.perf_counter() - started > START_S:
                raise RuntimeError(f"{' '.join(command)} does not come up")
            time.sleep(0.02)
        yield url, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


def _body(path: Path) -> httpx.Request:
    """A form with five seconds of 640×480 at 25 frames a second, in which something moves."""
    frame = np.full((480, 640, 3), 60, np.uint8)
    with VideoWriter(path, 25, (640, 480)) as writer:
        for number in range(125):
            frame[40 + number // 50 * 60 :][:200, 40 + number : 240 + number] = (200, number, 30)
            writer.write(frame)
    return httpx.Request("POST", "http://service", files={"video": ("clip.mp4", path.read_bytes())})


def _stored(folder: Path, home: Path) -> Path:
    """A bundle with random weights, as the newest of the model store in `home`."""
    base, adapter = folder / "base", folder / "adapter"
    _write_model(base, adapter)
    calibration = Calibration(transitions=count_transitions([], OPENPACK))
    settings = load_settings(preset=TINY)
    Preparation.of(settings).save(adapter / PREPARATION)
    once = settings.evaluation.model_copy(update={"views": 1})  # the plain handler looks at a clip once, too
    settings = BundleSettings(evaluation=once)
    data = [{"source": "none", "view": "none"}]
    stretches = [Stretch(one.id, 0, DEFAULT_FORMAT.frames) for one in OPENPACK.operations]
    grammar = learn([stretches], OPENPACK)  # of any order
    write_bundle(base, adapter, folder / "bundle", settings, calibration, grammar, data)
    # BentoML reads BENTOML_HOME once, at its import: in a process of its own, so that this one's stays what it is
    version = bundle_digest(folder / "bundle")
    code = (
        "import bentoml, shutil, sys\n"
        "with bentoml.models.create(sys.argv[1]) as model:\n"
        "    shutil.copytree(sys.argv[2], model.path, dirs_exist_ok=True)"
    )
    variables = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-c", code, f"{NAME}:{version}", str(folder / "bundle")]
    subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
    return folder / "bundle"


def _write_model(base: Path, adapter: Path) -> None:
    import torch

    from pipelines.common.vlm import dialogue, tiny
    from pipelines.common.vlm.load import load
    from pipelines.common.vlm.lora import put_lora

    torch.manual_seed(0)
    size = PretrainSettings().model
    phrases = (*dialogue.FRAME_PHRASES, *dialogue.ANSWER_PHRASES, *tiny.CHAT_PHRASES, instruction(OPENPACK))
    processor = tiny.processor(phrases, size)
    model = tiny.model(processor.tokenizer, size)
    model.save_pretrained(base)
    processor.save_pretrained(base)
    of_base = BaseModel(TINY, "", "random", model.num_parameters(), [])
    write_json(base / BASE, asdict(of_base))
    put_lora(load(base, device="cpu").model, LoraSettings(), gradient_checkpointing=False).save_pretrained(adapter)
    digest = next(value for name, value in folder_digests(adapter).items() if name.endswith(".safetensors"))
    write_json(adapter / ADAPTER, asdict(Adapter(TINY, of_base.digest, digest, 0, 0, 0.0, None, [])))
    write_json(adapter / LABELS, OPENPACK.as_json())
