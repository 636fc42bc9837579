"""The service over real HTTP: a built bento with a toy model, served from a folder far from the sources."""

import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import toy_bento
from media_samples import gif_bomb, make_source
from PIL import Image
from toy_bento import Served

import service
from pipelines.common.media import VideoWriter
from pipelines.openpack.serve import Desk, clip_id
from pipelines.openpack.taxonomy import OPENPACK
from resources.bento import Bento, build

ROOT = Path(__file__).parents[1]
MEGABYTE = b"\0" * 2**20
BODY_LIMIT = service.ROUTES["/predict"].body_bytes
BOUNDARY = {"content-type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def stages(toy_base: Path, tmp_path_factory) -> Path:
    return toy_bento.write_toy(tmp_path_factory.mktemp("stages"), toy_base)


@pytest.fixture(scope="module")
def built(stages: Path, tmp_path_factory) -> Bento:
    toy_bento.store(tmp_path_factory.getbasetemp() / "bentoml")
    return build(stages / "base_model", stages / "adapter")


@pytest.fixture(scope="module")
def served(built: Bento, tmp_path_factory) -> Iterator[Served]:
    import bentoml

    folder = tmp_path_factory.mktemp("elsewhere")
    with toy_bento.serve(Path(bentoml.bentos.export_bento(built.tag, str(folder / "bento"), "folder")), folder) as one:
        yield one


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Six seconds at 30 frames a second in which something moves on now and then."""
    return _video(tmp_path_factory.mktemp("videos") / "U0108_S0500_t0035.mp4", 180)


def _video(path: Path, n: int) -> Path:
    frame = np.full((240, 320, 3), 60, np.uint8)
    with VideoWriter(path, 30, (320, 240)) as writer:
        for i in range(n):
            frame[40 + i // 50 * 30 : 90 + i // 50 * 30, 40:200] = (200, i, 30)
            writer.write(frame)
    return path


def _post(served: Served, name: str, data: bytes) -> httpx.Response:
    return httpx.post(f"{served.url}/predict", files={"video": (name, data)}, timeout=60)


def test_a_video_gets_the_briefs_answer(served: Served, video: Path) -> None:
    response = _post(served, video.name, video.read_bytes())
    assert response.status_code == 200, response.text
    answer = response.json()
    assert list(answer) == [
        "clip_id",
        "dominant_operation",
        "temporal_segment",
        "anticipated_next_operation",
        "confidence",
    ]
    assert list(answer["temporal_segment"]) == ["start_frame", "end_frame"]
    assert answer["clip_id"] == "U0108_S0500_t0035"
    assert {answer["dominant_operation"], answer["anticipated_next_operation"]} <= set(OPENPACK.brief)
    assert 0 <= answer["temporal_segment"]["start_frame"] < answer["temporal_segment"]["end_frame"] <= 125
    assert 0 < answer["confidence"] <= 1


def test_the_answer_is_the_evaluations_own(served: Served, stages: Path, video: Path) -> None:
    from pipelines.openpack.predict import Predictor
    from pipelines.openpack.preparation import Preparation
    from pipelines.openpack.settings import AllSettings, EvaluationSettings

    settings = EvaluationSettings(device="cpu")
    base, adapter = stages / "base_model", stages / "adapter"
    tuned, untuned = (Predictor.load(base, path, OPENPACK, settings, toy_bento.CALIBRATED) for path in (adapter, None))
    expected, without = (one.answer_video(video, video.stem, Preparation.of(AllSettings())) for one in (tuned, untuned))
    answer = _post(served, video.name, video.read_bytes()).json()
    assert answer == {**expected.brief(), "confidence": pytest.approx(expected.confidence, abs=5e-4)}
    assert abs(answer["confidence"] - without.confidence) > 1e-3  # the adapter is on it
    assert expected.raw
    assert abs(answer["confidence"] - expected.raw.confidence) > 1e-3  # and the calibration


def test_a_video_cut_short_is_answered_for_its_own_length(served: Served, tmp_path: Path) -> None:
    answer = _post(served, "short.mp4", _video(tmp_path / "short.mp4", 60).read_bytes()).json()
    assert answer["temporal_segment"]["end_frame"] <= 50


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("picture.jpg", "lasts 0.04 s, too short"),
        ("notes.txt", "not a readable video"),
        ("empty.mp4", "the file is empty"),
        ("cut.mp4", "not a readable video"),
        ("ten.mp4", "too short to be looked at"),
        ("bomb.gif", "the picture has 12000×12000 pixels, more than 9.4 million"),
        ("fast.mp4", "400 frames a second, more than 240"),
        ("long.mp4", "the video lasts 62.0 s, more than 60.0 s"),
    ],
)
def test_what_is_no_video_gets_400_with_a_sentence(
    served: Served, video: Path, tmp_path: Path, name: str, said: str
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 48)).save(picture, "JPEG")
    data = {
        "picture.jpg": picture.getvalue(),
        "notes.txt": b"Put the box on the bench.",
        "empty.mp4": b"",
        "cut.mp4": video.read_bytes()[:3000],
        "ten.mp4": _video(tmp_path / "ten.mp4", 10).read_bytes(),
        "bomb.gif": gif_bomb(12_000),
        "fast.mp4": make_source(tmp_path / "fast.mp4", 400, "400").read_bytes(),
        "long.mp4": make_source(tmp_path / "long.mp4", 62, "1").read_bytes(),
    }[name]
    response = _post(served, name, data)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    sentence = response.json()["error"]
    assert sentence.startswith(f"{Path(name).stem}: ")
    assert said in sentence
    assert str(served.temporary) not in sentence


@pytest.mark.parametrize("form", ["multipart", "urlencoded", "json", "no field", "two files", "nothing", "garbage"])
def test_only_a_file_is_taken_and_no_address_is_fetched(served: Served, form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4"
        request = {
            "multipart": {"files": {"video": (None, address)}},
            "urlencoded": {"data": {"video": address}},
            "json": {"json": {"video": address}},
            "no field": {"files": {"file": ("clip.mp4", b"abc")}},
            "two files": {"files": [("video", ("a.mp4", b"a")), ("video", ("b.mp4", b"b"))]},
            "nothing": {},
            "garbage": {"content": b"not the form that was promised", "headers": BOUNDARY},
        }[form]
        response = httpx.post(f"{served.url}/predict", timeout=30, **request)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert response.status_code == 400
    assert "as a file in the field `video`" in response.json()["error"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_gets_413(served: Served, announced: bool) -> None:
    megabytes = BODY_LIMIT // 2**20
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\ncontent-disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        for _ in range(2 * megabytes):
            sent += 1
            yield MEGABYTE

    length = {"content-length": str(2 * BODY_LIMIT)} if announced else {}
    response = httpx.post(f"{served.url}/predict", content=body(), headers={**BOUNDARY, **length}, timeout=60)
    assert response.status_code == 413
    assert "larger than 64 MB" in response.json()["error"]
    assert sent < (megabytes if announced else 2 * megabytes)
    assert httpx.get(f"{served.url}/livez").is_success


def test_it_listens_on_loopback_only_unless_told(served: Served) -> None:
    ports = {one.laddr for one in served.process.net_connections("tcp") if one.status == "LISTEN"}
    assert {address.ip for address in ports} == {"127.0.0.1"}


def test_it_describes_itself(served: Served) -> None:
    for path in ("livez", "readyz", "metrics"):
        assert httpx.get(f"{served.url}/{path}").is_success
    paths = httpx.get(f"{served.url}/docs.json").json()["paths"]
    operation = paths["/predict"]["post"]
    field = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["video"]
    assert (field["type"], field["format"]) == ("string", "binary")
    assert list(operation["responses"]) == ["200", "400", "401", "403", "408", "413", "429", "503", "504"]
    assert {"X-Model", "X-Adapter", "X-Label-Set", "X-Data"} <= set(operation["responses"]["200"]["headers"])
    assert "Retry-After" in operation["responses"]["429"]["headers"]
    assert "503" in paths["/readyz"]["get"]["responses"]


def test_it_says_what_answers(served: Served, built: Bento, video: Path) -> None:
    ready = httpx.get(f"{served.url}/readyz").json()
    told = {"model": built.model_tag, "adapter": "a1", "label_set": "brief", "data": "simulated/video"}
    assert ready == {"ready": True, "base": "tiny", "clips": 3, **told}
    headers = _post(served, video.name, video.read_bytes()).headers
    assert {name: headers[f"x-{name.replace('_', '-')}"] for name in told} == told


def test_it_is_not_ready_once_a_part_of_it_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(lambda: [])
    monkeypatch.setattr(desk, "models", SimpleNamespace(current=object(), failure=None))
    for name in ("batcher", "sandbox", "long_videos"):
        monkeypatch.setattr(desk, name, SimpleNamespace(works=name != "sandbox"), raising=False)
    assert desk.state() == (503, {"ready": False, "loading": False, "broken": ["clips"]})


def test_what_it_did_is_measured_and_logged(served: Served, video: Path) -> None:
    before = _metrics(served)
    answer = _post(served, "secret-name.mp4", video.read_bytes())
    _post(served, "secret-name.txt", b"text")
    grown = {name: value - before.get(name, 0) for name, value in _metrics(served).items()}
    for stage in ("receive", "decode_wait", "decode", "queue", "score"):
        assert grown[f'serving_stage_seconds_count{{stage="{stage}"}}'] >= 1
    for name in ("serving_batch_size_count", "packaging_confidence_count", 'serving_refused_total{reason="video"}'):
        assert grown[name] == 1
    operation = answer.json()["dominant_operation"]
    assert grown[f'packaging_answers_total{{name="{operation}",part="operation"}}'] == 1
    assert _metrics(served)["serving_queue_length"] == 0
    lines = [json.loads(line) for line in served.log.read_text().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line.get("request_id") == answer.headers["x-request-id"]]
    assert (line["route"], line["status"], line["operation"]) == ("/predict", 200, operation)
    assert line["confidence"] == answer.json()["confidence"]
    assert sum(line["stages"].values()) <= line["seconds"] + 0.01
    assert lines[-1]["refused"] == "video"
    assert "secret-name" not in served.log.read_text()


def test_many_at_once_are_answered_together(served: Served, video: Path) -> None:
    before = _metrics(served)
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda number: _post(served, f"{number}.mp4", video.read_bytes()), range(16)))
    assert [answer.status_code for answer in answers] == [200] * 16
    assert [answer.json()["clip_id"] for answer in answers] == [str(number) for number in range(16)]
    assert (
        len({(str(one["temporal_segment"]), one["dominant_operation"]) for one in map(httpx.Response.json, answers)})
        == 1
    )
    assert _metrics(served)["serving_batch_size_sum"] - before["serving_batch_size_sum"] == 16


def _metrics(served: Served) -> dict[str, float]:
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_a_thousand_odd_requests_leave_no_series_behind(served: Served) -> None:
    """BentoML's own metrics had a series for each path, before any token was asked for."""
    _metrics(served)
    before = set(_metrics(served))
    with httpx.Client(base_url=served.url) as client:
        for number in range(1000):
            client.request(("GET", "PUT", "PATCH")[number % 3], f"/odd/{number}?of={number}")
    after = httpx.get(f"{served.url}/metrics")
    names = {line.rpartition(" ")[0] for line in after.text.splitlines() if line[0] != "#"}
    assert not [name for name in names if "odd" in name]
    assert len(names - before) < 40  # of two or three statuses of the route `other`
    assert len(after.content) < 200_000


def test_nothing_of_an_upload_stays(served: Served, video: Path) -> None:
    before = sorted(served.temporary.rglob("*"))
    _post(served, video.name, video.read_bytes())
    _post(served, "notes.txt", b"text")
    assert sorted(served.temporary.rglob("*")) == before


def test_without_a_model_it_does_not_start_and_says_why(tmp_path: Path) -> None:
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-m", "bentoml", "serve", "service:PackagingService", "--port", "0"]
    done = subprocess.run(
        command, cwd=ROOT, env=toy_bento.environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "no packaging_vlm in BentoML's model store" in done.stderr
    assert "Materialise `bento` first: make demo" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("U0108_S0500_t0035.mp4", "U0108_S0500_t0035"),
        ("../../etc/pass wd.mp4", "pass_wd"),
        ("C:\\videos\\box 1.avi", "box_1"),
        ("包装.mp4", "包装"),
        ('"><script>.mp4', "script"),
        ("a" * 500 + ".mp4", "a" * 64),
        (".mp4", "mp4"),
        ("..", "clip"),
        ("", "clip"),
        (None, "clip"),
    ],
)
def test_clip_id_is_a_harmless_name(filename: str | None, expected: str) -> None:
    assert clip_id(filename) == expected
