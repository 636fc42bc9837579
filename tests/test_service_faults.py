"""The service while it serves from a model store: other models, broken ones, killed processes, clients that leave.

The tests share one served process and run in order; the last one ends it.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import toy_bento
from kills import alive, wait_until
from toy_bento import Served

from pipelines.common.media import VideoWriter
from pipelines.openpack import long_videos

TOKEN = {"Authorization": "Bearer a-token"}
STARTED_S = 300  # a machine that is busy with something else needs minutes to start a worker


@pytest.fixture(scope="module")
def stored(toy_base: Path, tmp_path_factory) -> Callable[..., Path]:
    """Builds a toy adapter of a seed; returns its folder in another model store than the served one."""
    from resources.bento import build

    home = toy_bento.store(tmp_path_factory.getbasetemp() / "bentoml")

    def make(seed: int, scale: float = 1.0) -> Path:
        folder = toy_bento.write_toy(tmp_path_factory.mktemp("stages"), toy_base, seed, scale)
        name, version = build(folder / "base_model", folder / "adapter").model_tag.split(":")
        return home / "models" / name / version

    return make


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("served") / "home"


@pytest.fixture(scope="module")
def first(stored: Callable[..., Path], home: Path) -> str:
    return toy_bento.put_model(home, stored(0))


@pytest.fixture(scope="module")
def served(first: str, home: Path) -> Iterator[Served]:
    with toy_bento.serve("service:PackagingService", home.parent, SERVICE_TOKEN="a-token") as one:
        yield one


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    frame = np.full((240, 320, 3), 60, np.uint8)
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    with VideoWriter(path, 25, (320, 240)) as writer:
        for number in range(125):
            frame[40 + number // 50 * 30 : 90 + number // 50 * 30, 40:200] = (200, number, 30)
            writer.write(frame)
    return path.read_bytes()


def _post(served: Served, data: bytes, timeout: float = 60) -> httpx.Response:
    return httpx.post(f"{served.url}/predict", files={"video": ("clip.mp4", data)}, headers=TOKEN, timeout=timeout)


def _metric(served: Served, name: str) -> float:
    lines = httpx.get(f"{served.url}/metrics", headers=TOKEN).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def _worker(served: Served) -> psutil.Process:
    (worker,) = [one for one in served.process.children() if "_bentoml_impl.worker.service" in one.cmdline()]
    return worker


def _decoders(served: Served) -> list[psutil.Process]:
    """The processes that read videos: what the fork server of the worker started."""
    servers = [one for one in _worker(served).children() if "forkserver" in " ".join(one.cmdline())]
    return [child for server in servers for child in server.children()]


def _left(served: Served) -> list[Path]:
    return list(served.temporary.glob("packaging-upload*/*"))


@pytest.mark.parametrize("path", ["/metrics", "/docs.json", "/schema.json", "/nothing"])
def test_a_token_is_asked_for_where_there_is_one(served: Served, path: str) -> None:
    refused = httpx.get(f"{served.url}{path}")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert httpx.get(f"{served.url}{path}", headers=TOKEN).status_code in (200, 404)


def test_without_the_token_no_video_is_answered_and_probes_are(served: Served, video: bytes) -> None:
    assert httpx.post(f"{served.url}/predict", files={"video": ("clip.mp4", video)}).status_code == 401
    assert _post(served, video).status_code == 200
    assert [httpx.get(f"{served.url}/{probe}").status_code for probe in ("livez", "readyz")] == [200, 200]


def test_a_newer_model_answers_without_a_restart(
    served: Served, first: str, home: Path, stored: Callable[..., Path], video: bytes
) -> None:
    worker, before = _worker(served), _post(served, video)
    newer, answers = toy_bento.put_model(home, stored(1)), []

    def another() -> bool:
        answers.extend(clients.map(lambda _: _post(served, video), range(2)))
        return answers[-1].headers["x-model"] != first

    with ThreadPoolExecutor(2) as clients:
        wait_until(another, STARTED_S)
    assert {answer.status_code for answer in answers} == {200}
    assert before.headers["x-model"] == first
    assert (answers[-1].headers["x-model"], answers[-1].headers["x-adapter"]) == (newer, "a2")
    assert answers[-1].json() != before.json()
    assert httpx.get(f"{served.url}/readyz").json()["model"] == newer
    assert _worker(served) == worker
    assert _metric(served, "serving_model_loaded{") == 1


@pytest.mark.parametrize("how", ["no numbers", "damaged"])
def test_a_broken_model_never_answers(
    served: Served, home: Path, stored: Callable[..., Path], video: bytes, how: str, tmp_path: Path
) -> None:
    good = httpx.get(f"{served.url}/readyz").json()["model"]
    if how == "no numbers":
        broken = stored(2, float("nan"))
    else:
        whole = stored(3)
        broken = tmp_path / whole.parent.name / whole.name
        shutil.copytree(whole, broken)
        os.truncate(broken / "adapter" / "adapter_model.safetensors", 100)
    rejected = _metric(served, "serving_model_rejected_total")
    name = toy_bento.put_model(home, broken)
    wait_until(lambda: _metric(served, "serving_model_rejected_total") > rejected, STARTED_S)
    answer = _post(served, video)
    assert (answer.status_code, answer.headers["x-model"]) == (200, good)
    ready = httpx.get(f"{served.url}/readyz").json()
    assert (ready["ready"], ready["model"]) == (True, good)
    assert name in ready["rejected"]
    assert served.log.read_text().count(f'"model_rejected", "model": "{name}"') == 1


def test_a_client_that_leaves_frees_its_place(served: Served, video: bytes) -> None:
    """All processes stand still, so that every request hangs; their clients leave; then all is as before.

    Those for long videos, who had nothing to do, are left alone.
    """
    decoders = wait_until(lambda: _decoders(served))
    for process in decoders:
        process.suspend()
    with ThreadPoolExecutor(4) as clients, suppress(httpx.ReadTimeout):
        list(clients.map(lambda _: _post(served, video, timeout=1), range(4)))
    wait_until(lambda: len(alive(decoders)) <= long_videos.AT_ONCE)
    for process in alive(decoders):
        process.resume()
    assert _post(served, video).status_code == 200
    wait_until(lambda: _metric(served, "serving_in_flight{") == 0)
    wait_until(lambda: not _left(served))


def test_a_killed_decoder_costs_no_answer(served: Served, video: bytes) -> None:
    for _ in range(3):
        with ThreadPoolExecutor(2) as clients:
            answers = [clients.submit(_post, served, video) for _ in range(2)]
            time.sleep(0.1)  # anywhere in the work, or before it: an answer it must be
            for process in _decoders(served):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            assert {answer.result().status_code for answer in answers} == {200}
    wait_until(lambda: not _left(served))


def test_after_a_killed_worker_the_next_request_is_answered(served: Served, video: bytes) -> None:
    worker = _worker(served)
    below = worker.children(recursive=True)
    worker.kill()
    assert _post(served, video, timeout=STARTED_S).status_code == 200
    assert _worker(served) != worker
    wait_until(lambda: not alive(below))
    assert _left(served) == []
    assert len(list(served.temporary.glob("packaging-upload*"))) == 1


def test_told_to_stop_it_finishes_what_it_took(served: Served, video: bytes) -> None:
    received = 'serving_stage_seconds_count{stage="receive"}'
    before = _metric(served, received)
    with ThreadPoolExecutor(4) as clients:
        answers = [clients.submit(_post, served, video) for _ in range(4)]
        wait_until(lambda: _metric(served, received) >= before + 4)
        served.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 4
    served.process.wait(60)
    assert list(served.temporary.glob("packaging-upload*")) == []
