"""The Python example of docs/clients.md runs as it is printed, against a server over real HTTP."""

import re
from pathlib import Path
from typing import Any

import httpx
import page_server
import pytest
from page_server import PREDICTION
from starlette.responses import JSONResponse

DOCUMENT = Path(__file__).parents[1] / "docs" / "clients.md"
ROWS = [("Tape", 0, 100, "Label", 0.9), ("Label", 100, 250, "Tape", 0.6)]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the example defines, as somebody has them who sets TOKEN and copies it."""
    monkeypatch.setenv("TOKEN", "seven words")
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, DOCUMENT, "exec"), names)
    return names


def test_the_example_waits_asks_and_reads_the_stream(example: dict[str, Any], tmp_path: Path, capsys):
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"what a service would look at")
    with page_server.serving() as server, httpx.Client(base_url=server.url, headers=example["HEADERS"]) as client:
        server.token = "seven words"
        server.answers = {"/predict": PREDICTION, "/timeline": page_server.timeline(ROWS, 10.0, [])}
        server.refusals = [JSONResponse({"error": "full"}, 429, {"Retry-After": "0"})]
        assert example["predict"](client, video) == PREDICTION
        assert [one.path for one in server.log] == ["/predict", "/predict"]
        result = example["timeline"](client, video)
        assert [row["operation"] for row in result["segments"]] == ["Tape", "Label"]
        assert capsys.readouterr().out.splitlines()[-1] == "8 of 8"
        assert {one.size for one in server.log} == {video.stat().st_size}
        server.refusals = [JSONResponse({"error": "clip: no video. Send one."}, 400)] * 2
        for ask in ("predict", "timeline"):
            with pytest.raises(RuntimeError, match="no video"):
                example[ask](client, video)
        server.answers["/timeline"] = [{"event": "error", "error": "clip: cut short."}]
        with pytest.raises(RuntimeError, match="cut short"):
            example["timeline"](client, video)
