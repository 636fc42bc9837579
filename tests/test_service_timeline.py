"""Whole videos and keyframes from the service over real HTTP, and its page in a real browser: a toy model, served."""

import base64
import csv
import io
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import toy_bento
from kills import alive, wait_until
from media_samples import make_source
from PIL import Image
from toy_bento import Served

import service
from pipelines.common.media import VideoWriter
from pipelines.openpack.preparation import Preparation
from pipelines.openpack.question import video_frames
from pipelines.openpack.settings import AllSettings, EvaluationSettings
from pipelines.openpack.taxonomy import OPENPACK
from pipelines.openpack.time_study import COLUMNS
from resources.bento import build

CHROMIUM = Path("/usr/bin/chromium")
PREPARED = Preparation.of(AllSettings())


@pytest.fixture(scope="module")
def stages(toy_base: Path, tmp_path_factory) -> Path:
    return toy_bento.write_toy(tmp_path_factory.mktemp("stages"), toy_base)


@pytest.fixture(scope="module")
def served(stages: Path, tmp_path_factory) -> Iterator[Served]:
    import bentoml

    toy_bento.store(tmp_path_factory.getbasetemp() / "bentoml")
    folder = tmp_path_factory.mktemp("elsewhere")
    built = build(stages / "base_model", stages / "adapter")
    with toy_bento.serve(Path(bentoml.bentos.export_bento(built.tag, str(folder / "bento"), "folder")), folder) as one:
        yield one


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Twelve seconds in which something moves on now and then."""
    return _video(tmp_path_factory.mktemp("videos") / "session.mp4", 300)


@pytest.fixture(scope="module")
def minutes(tmp_path_factory) -> bytes:
    """Two minutes: more windows than wait at a time."""
    return _video(tmp_path_factory.mktemp("videos") / "minutes.mp4", 3000).read_bytes()


def _video(path: Path, n: int) -> Path:
    frame = np.full((120, 160, 3), 60, np.uint8)
    with VideoWriter(path, 25, (160, 120)) as writer:
        for number in range(n):
            frame[20 + number // 50 % 3 * 20 :][:30, 20:100] = (200, number % 256, 30)
            writer.write(frame)
    return path


def _post(served: Served, route: str, name: str, data: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{served.url}{route}", files={"video": (name, data)}, headers=headers, timeout=120)


def _metric(served: Served, name: str) -> float:
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def _decoders(served: Served) -> list[psutil.Process]:
    """The processes that look at a long video just now, and their ffmpeg: those that give way to all others."""
    found = []
    for one in served.process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            busy = [child for child in one.children() if "rawvideo" in child.cmdline()]
            if busy and one.nice() > served.process.nice():
                found += [one, *busy]
    return found


def _at_rest(served: Served) -> bool:
    """No request is inside, nothing waits, no folder of one is left."""
    busy = _metric(served, "serving_in_flight{") + _metric(served, "serving_queue_length")
    return not busy and not list(served.temporary.glob("packaging-*/*"))


def test_keyframes_are_those_that_the_model_is_shown(served: Served, video: Path) -> None:
    response = _post(served, "/keyframes", video.name, video.read_bytes())
    assert response.status_code == 200, response.text
    told, (frames, chosen) = response.json(), video_frames(video, PREPARED)
    assert list(told) == ["fps", "bounds", "frames", "pairs", "pictures"]
    assert (told["fps"], told["bounds"], told["frames"]) == (25, list(chosen.bounds), list(chosen.frames))
    assert told["pairs"] == [list(pair) for pair in chosen.pairs]
    for address, frame in zip(told["pictures"], frames, strict=True):
        kind, _, data = address.partition(",")
        assert kind == "data:image/jpeg;base64"
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert picture.shape == (336, 336, 3)
        assert np.abs(picture.astype(int) - frame).mean() < 4
    assert response.headers["x-adapter"] == "a1"


def test_a_timeline_comes_line_by_line_and_is_the_one_made_by_hand(served: Served, stages: Path, video: Path) -> None:
    from pipelines.openpack.predict import Predictor
    from pipelines.openpack.timeline import answer_timeline

    response = _post(served, "/timeline", video.name, video.read_bytes())
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    *progress, result = map(json.loads, response.text.splitlines())
    of = len(progress)
    assert progress == [{"event": "progress", "done": done, "of": of} for done in range(1, of + 1)]
    predictor = Predictor.load(
        stages / "base_model", stages / "adapter", OPENPACK, EvaluationSettings(device="cpu"), toy_bento.CALIBRATED
    )
    settings = predictor.settings.timeline
    *_, expected = answer_timeline(predictor, video, PREPARED, toy_bento.CYCLE, settings)
    wanted = json.loads(json.dumps(expected.as_json(brief=True)))  # pyright: ignore[reportCallIssue]  # it is the last
    for said, meant in zip(result["segments"], wanted["segments"], strict=True):
        assert said == {**meant, "confidence": pytest.approx(meant["confidence"], abs=1e-3)}
    assert result["time_study"] == wanted["time_study"]
    assert [one["kind"] for one in result["alerts"]] == [one["kind"] for one in wanted["alerts"]]
    told = httpx.get(f"{served.url}/readyz").json()
    for header in ("model", "adapter", "data", "label_set"):
        assert response.headers[f"x-{header.replace('_', '-')}"] == told[header]


def test_the_time_study_can_be_had_as_csv(served: Served, video: Path) -> None:
    response = _post(served, "/timeline", video.name, video.read_bytes(), Accept="text/csv")
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert tuple(rows[0]) == COLUMNS
    assert {row["name"] for row in rows if row["of"] == "operation"} <= set(OPENPACK.brief)
    assert _post(served, "/timeline", "notes.txt", b"text", Accept="text/csv").status_code == 400


@pytest.mark.parametrize("route", ["/keyframes", "/timeline"])
@pytest.mark.parametrize(
    ("name", "said"), [("notes.txt", "not a readable video"), ("ten.mp4", "too short"), ("long.mp4", "lasts")]
)
def test_what_is_no_video_gets_400_with_a_sentence(
    served: Served, tmp_path: Path, route: str, name: str, said: str
) -> None:
    data = {
        "notes.txt": lambda: b"Put the box on the bench.",
        "ten.mp4": lambda: _video(tmp_path / "ten.mp4", 10).read_bytes(),
        "long.mp4": lambda: make_source(tmp_path / "long.mp4", 1802, "1").read_bytes(),
    }[name]()
    response = _post(served, route, name, data)
    assert response.status_code == 400
    sentence = response.json()["error"]
    assert sentence.startswith(f"{Path(name).stem}: ")
    assert said in sentence
    assert str(served.temporary) not in sentence
    form = httpx.post(f"{served.url}{route}", data={"video": "http://127.0.0.1/clip.mp4"}, timeout=30)
    assert (form.status_code, "as a file in the field" in form.text) == (400, True)


def test_a_client_that_leaves_ends_the_work(served: Served, minutes: bytes) -> None:
    files = {"video": ("minutes.mp4", minutes)}
    with httpx.stream("POST", f"{served.url}/timeline", files=files, timeout=120) as response:
        lines = response.iter_lines()  # kept: with it the connection would go
        assert json.loads(next(lines))["event"] == "progress"
        decoders = _decoders(served)
    assert decoders
    wait_until(lambda: not alive(decoders))
    wait_until(lambda: _at_rest(served))


def test_what_fails_after_the_first_line_is_told_in_the_last(served: Served, minutes: bytes) -> None:
    files = {"video": ("minutes.mp4", minutes)}
    with httpx.stream("POST", f"{served.url}/timeline", files=files, timeout=120) as response:
        lines = response.iter_lines()
        next(lines)
        for decoder in _decoders(served):
            decoder.kill()
        *_, last = map(json.loads, lines)
    assert last == {"event": "error", "error": "Reading the video was interrupted. Send it again."}
    wait_until(lambda: _at_rest(served))


def test_more_than_two_at_once_are_told_when_to_come_back(served: Served, video: Path, minutes: bytes) -> None:
    """Both processes stand still meanwhile; a clip is answered all the same."""
    wait_until(lambda: _at_rest(served))

    def stand_still() -> int:
        for one in _decoders(served):
            one.suspend()
        return len(_decoders(served))

    def ask() -> None:
        with suppress(httpx.ReadTimeout):
            httpx.post(f"{served.url}/timeline", files={"video": ("minutes.mp4", minutes)}, timeout=30)

    with ThreadPoolExecutor(2) as clients:
        for _ in range(service.ROUTES["/timeline"].at_once):
            clients.submit(ask)
        wait_until(lambda: _metric(served, 'serving_in_flight{route="/timeline"}') == 2)
        wait_until(lambda: stand_still() >= 4)
        refused = _post(served, "/timeline", video.name, video.read_bytes())
        assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
        assert _post(served, "/predict", video.name, video.read_bytes()).status_code == 200
        for one in _decoders(served):
            one.send_signal(signal.SIGCONT)
    wait_until(lambda: _at_rest(served))
    assert _post(served, "/timeline", video.name, video.read_bytes()).status_code == 200


def test_it_describes_all_routes(served: Served) -> None:
    paths = httpx.get(f"{served.url}/docs.json").json()["paths"]
    for route in ("/predict", "/keyframes", "/timeline"):
        assert list(paths[route]["post"]["responses"]) == [
            "200",
            "400",
            "401",
            "403",
            "408",
            "413",
            "429",
            "503",
            "504",
        ]
    assert list(paths["/timeline"]["post"]["responses"]["200"]["content"]) == ["application/x-ndjson", "text/csv"]


def _lines(served: Served) -> list[dict[str, Any]]:
    whole = [line for line in served.log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    return [json.loads(line) for line in whole if line.startswith("{")]


def test_what_it_did_is_logged(served: Served, video: Path) -> None:
    answers = [_post(served, route, "secret-name.mp4", video.read_bytes()) for route in ("/keyframes", "/timeline")]
    ids = {answer.headers["x-request-id"] for answer in answers}
    wait_until(lambda: ids <= {line.get("request_id") for line in _lines(served)})  # written after the last byte
    lines = _lines(served)
    for answer, route in zip(answers, ("/keyframes", "/timeline"), strict=True):
        (line,) = [line for line in lines if line.get("request_id") == answer.headers["x-request-id"]]
        assert (line["route"], line["status"], line["model"]) == (route, 200, answer.headers["x-model"])
    assert (line["frames"], line["stages"]["timeline"] > 0) == (300, True)
    assert "secret-name" not in served.log.read_text()


def test_a_video_that_is_dropped_on_the_page_becomes_a_timeline(served: Served, video: Path) -> None:
    if not CHROMIUM.is_file():
        pytest.skip("no Chromium at /usr/bin/chromium")
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("response", lambda response: complaints.append(response.url) if response.status >= 400 else None)
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => console.error('policy: ' + event.blockedURI))"
        )
        page.goto(served.url)
        data = page.evaluate_handle(
            """([bytes]) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(bytes)], "session.mp4", {type: "video/mp4"}));
              return transfer;
            }""",
            [list(video.read_bytes())],
        )
        page.dispatch_event("body", "drop", {"dataTransfer": data})
        page.locator("#study").wait_for()
        assert page.locator(".segment").count() >= 1
        assert page.locator("#source").inner_text().count("simulated/video") == 1
        page.locator("#file").set_input_files({"name": "clip.mp4", "mimeType": "video/mp4", "buffer": _clip(video)})
        page.locator("#pairs img").nth(7).wait_for()
        assert page.locator("#pairs img").evaluate_all("(all) => all.every((one) => one.naturalWidth === 336)")
        browser.close()
    assert complaints == []


def _clip(video: Path) -> bytes:
    return _video(video.with_name("clip.mp4"), 120).read_bytes()
