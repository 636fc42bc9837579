"""The page of the service in a real browser: what a person sees by mouse, keyboard and phone, and what goes wrong."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import numpy as np
import page_server
import pytest
from media_samples import make_source
from page_server import PREDICTION, SOURCE, PageServer
from starlette.responses import JSONResponse

from pipelines.common.media import VideoWriter

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Response

CHROMIUM = Path("/usr/bin/chromium")
WAIT_S = 40  # for what takes a tenth of a second where nothing else runs
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 320, "height": 640}
ROWS = [
    ("Box Setup", 0, 75, "Put Items", 0.95),
    ("Put Items", 75, 150, "Tape", 0.74),
    ('Tape, "wide"', 150, 160, "Label", 0.55),
    ("Label", 160, 225, "Final Check", 0.31),
    ("Put Items", 225, 300, "Box Setup", 0.88),
]
ALERTS = [
    {"kind": "repeated", "operation": "Put Items", "start_s": 9.0, "end_s": 12.0, "frame": 225, "box": 1}
    | {"surprise_bits": 4.25, "message": "Put Items came a second time in this box."},
    {"kind": "skipped", "operation": "Final Check", "start_s": 6.4, "end_s": 9.0, "frame": 160, "box": 1}
    | {"surprise_bits": 6.5, "message": "Final Check did not come where it usually does."},
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`clip.mp4` of 4 s and `session.mp4` of 12 s, which the browser plays, and two that it does not play."""
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in (("clip", 100), ("session", 300)):
        with VideoWriter(folder / f"{name}.mp4", 25, (160, 120)) as writer:
            for number in range(frames):
                picture = np.full((120, 160, 3), 60, np.uint8)
                picture[40:80, number % 120 : number % 120 + 40] = 220
                writer.write(picture)
    make_source(folder / "short.avi", 60, "25", "-c:v", "mpeg4")
    make_source(folder / "long.avi", 200, "25", "-c:v", "mpeg4")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if not CHROMIUM.is_file():
        pytest.skip("no Chromium at /usr/bin/chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running() -> Iterator[PageServer]:
    with page_server.serving() as server:
        yield server


@pytest.fixture
def server(running: PageServer) -> PageServer:
    """The server, with its canned answers and nothing in its way."""
    running.clip_format = dict(page_server.FORMAT)
    running.answers = {
        "/predict": PREDICTION,
        "/keyframes": page_server.keyframes(100),
        "/timeline": page_server.timeline(ROWS, 12.0, ALERTS),
    }
    running.refusals, running.token, running.held, running.log, running.left = [], None, False, [], Queue()
    return running


@pytest.fixture
def opened(browser: "Browser", server: PageServer) -> Iterator[Any]:
    """Opens the page in a window of its own; afterwards nothing was blocked, broken or asked of another host."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []
    asked: set[str] = set()

    def on_response(response: "Response") -> None:
        if response.request.method == "GET" and response.status >= 400:
            complaints.append(response.url)

    def on_console(line: "ConsoleMessage") -> None:
        # the browser itself writes a line for each request that failed, and some tests want theirs to fail
        if line.type in ("error", "warning") and not line.text.startswith("Failed to load resource: "):
            complaints.append(line.text)

    def open_page(**options: Any) -> "Page":
        context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
        contexts.append(context)
        context.set_default_timeout(WAIT_S * 1000)
        page = context.new_page()
        page.on("request", lambda request: asked.add(request.url))
        page.on("response", on_response)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", on_console)
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => console.error('policy: ' + event.blockedURI))"
        )
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    own = (server.url, "blob:" + server.url, "data:")
    assert {url for url in asked if not url.startswith(own)} == set()


def choose(page: "Page", video: Path) -> None:
    page.locator("#file").set_input_files(video)


def timeline_of(page: "Page", videos: dict[str, Path]) -> None:
    choose(page, videos["session.mp4"])
    page.locator("#study").wait_for()


def place(page: "Page") -> float:
    return page.locator("#video").evaluate("(video) => video.currentTime")


def share(part: "Locator", whole: "Locator") -> tuple[float, float]:
    """From where to where a part lies in a whole, as shares of its width."""
    inner, outer = part.bounding_box(), whole.bounding_box()
    assert inner
    assert outer
    start = (inner["x"] - outer["x"]) / outer["width"]
    return start, start + inner["width"] / outer["width"]


def contrast(page: "Page") -> list[str]:
    """Texts whose contrast to their ground is below 4.5, by the formula of WCAG 2."""
    return page.evaluate("""() => {
      const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const rgba = (colour) => {
        paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data];
      };
      const light = (colour) => rgba(colour).slice(0, 3).map((c) => c / 255)
        .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const ground = (node) => {
        for (; node; node = node.parentElement) {
          const colour = getComputedStyle(node).backgroundColor;
          if (rgba(colour)[3] === 255) return colour;
        }
        return "white";
      };
      const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      const poor = [];
      while (words.nextNode()) {
        const node = words.currentNode.parentElement;
        if (!words.currentNode.data.trim() || !node.checkVisibility() || node.tagName === "NOSCRIPT") continue;
        const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(words.currentNode.data.trim());
      }
      return poor;
    }""")


def test_a_clip_that_is_dropped_shows_what_the_model_said_and_saw(opened, server: PageServer, videos):
    page = opened()
    data = page.evaluate_handle(
        """async ([bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "clip.mp4", {type: "video/mp4"}));
          return transfer;
        }""",
        [list(videos["clip.mp4"].read_bytes())],
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": data})
    assert page.locator(".drop-cover").is_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": data})
    page.locator("#pairs img").nth(7).wait_for()
    assert not page.locator(".drop-cover").is_visible()
    card = page.locator("#now").inner_text()
    for said in ("Box Setup", "0:00.8 to 0:03.2", "20 to 79", "Put Items", "93 %, sure"):
        assert said in card
    assert share(page.locator(".segment"), page.locator(".track")) == pytest.approx((0.2, 0.8), abs=0.005)
    assert page.locator(".segment").get_attribute("aria-label") == (
        "Box Setup, 0:00.8 to 0:03.2, 93 %, sure; next Put Items"
    )
    assert [round(share(cut, page.locator(".track"))[0], 2) for cut in page.locator(".cut").all()] == [0.25, 0.5, 0.75]
    assert page.locator(".pairs p").all_inner_texts() == [f"Frames {at} to {at + 24}" for at in (0, 25, 50, 75)]
    assert page.locator(".keyframe span").all_inner_texts() == [
        f"Frame {at + n}" for at in (0, 25, 50, 75) for n in (3, 4)
    ]
    assert page.locator("#pairs img").evaluate_all("(all) => all.every((one) => one.naturalWidth === 84)")
    source = page.locator("#source").inner_text()
    assert all(value in source for value in SOURCE.values())
    sent = server.asked("/predict")[0]
    assert (sent.filename, sent.size) == ("clip.mp4", videos["clip.mp4"].stat().st_size)
    assert not server.asked("/timeline")
    page.locator(".keyframe").nth(5).click()
    assert place(page) == pytest.approx(54.5 / 25)
    assert "Answer for clip.mp4: Box Setup; next Put Items." in page.locator("#said").inner_text()


def test_lengths_and_rates_are_those_of_the_service(opened, server: PageServer, videos):
    server.clip_format = {"fps": 10, "seconds": 1, "frames": 10, "size": 448}
    page = opened()
    page.locator("#choose-hint").get_by_text("Up to 3 seconds: one answer for the first 1.").wait_for()
    page.set_input_files("#file", videos["clip.mp4"])  # of four seconds, which now are too many for one answer
    page.locator("#study").wait_for()
    assert not server.asked("/predict")
    server.clip_format = {"fps": 20, "seconds": 8, "frames": 160, "size": 448}
    page.set_input_files("#file", videos["clip.mp4"])
    page.locator("#pairs img").nth(7).wait_for()
    assert "0:01.0 to 0:04.0" in page.locator("#now").inner_text()  # frames 20 to 80


def test_the_video_plays_and_the_playhead_moves_with_it(opened, videos):
    page = opened(reduced_motion="no-preference")
    choose(page, videos["clip.mp4"])
    page.locator("#bar-box").wait_for()
    page.wait_for_function("() => document.getElementById('video').currentTime > 0.4")
    page.locator("#video").evaluate("(video) => { video.pause(); video.currentTime = 2; }")
    page.wait_for_function("() => parseFloat(document.getElementById('playhead').style.left) === 50")


def test_a_long_video_becomes_a_timeline_whose_keys_clicks_and_alerts_seek(opened, server: PageServer, videos):
    page = opened()
    timeline_of(page, videos)
    assert not server.asked("/predict")
    segments, track = page.locator(".segment"), page.locator(".track")
    for index, (_, start, end, *_) in enumerate(ROWS):
        assert share(segments.nth(index), track) == pytest.approx((start / 300, end / 300), abs=0.005)
    assert segments.all_inner_texts() == ["Box Setup", "Put Items", "TW", "Label", "Put Items"]
    looks = [one.get_attribute("class") for one in segments.all()]
    assert looks[1] == looks[4]
    assert len(set(looks)) == 4
    segments.nth(3).click()
    assert place(page) == pytest.approx(160.5 / 25)
    assert "Label" in page.locator("#now").inner_text()
    assert "31 %, mostly a guess" in page.locator("#now").inner_text()
    for key, index in (("ArrowLeft", 2), ("ArrowLeft", 1), ("End", 4), ("ArrowRight", 4), ("Home", 0)):
        page.keyboard.press(key)
        assert place(page) == pytest.approx((ROWS[index][1] + 0.5) / 25)
        assert page.evaluate("() => document.activeElement.ariaCurrent") == "true"
        assert segments.nth(index).evaluate("(one) => one === document.activeElement")
        assert share(page.locator("#playhead"), track)[0] == pytest.approx(ROWS[index][1] / 300, abs=0.01)
    alerts = page.locator(".alert")
    assert page.locator("#alerts-name").inner_text() == "2 alerts"
    first = alerts.nth(0).inner_text()
    for said in ("Skipped", "0:06.4", "Final Check", "did not come where", "Frame 160, box 1, 6.5 bits"):
        assert said in first
    alerts.nth(1).click()
    assert place(page) == pytest.approx(225.5 / 25)
    marks = [round(share(mark, page.locator(".track"))[0], 1) for mark in page.locator(".mark").all()]
    assert marks == [0.5, 0.7]


def _numbers(rows: list[dict[str, str]]) -> list[dict[str, str | float]]:
    return [{name: cell if name == "operation" else float(cell) for name, cell in row.items()} for row in rows]


def test_the_time_study_can_be_had_as_csv(opened, server: PageServer, videos):
    page = opened()
    timeline_of(page, videos)
    result = server.answers["/timeline"][-1]
    saved = {}
    for button in page.get_by_role("button", name="Download as CSV").all():
        with page.expect_download() as download:
            button.click()
        text = download.value.path().read_bytes().decode()
        assert text.count("\r\n") == text.count("\n")
        saved[download.value.suggested_filename] = list(csv.DictReader(io.StringIO(text, newline="")))
    wanted = [{key: str(value) for key, value in row.items()} for row in result["time_study"]["operations"]]
    # the browser writes 3.0 as 3
    assert _numbers(saved["session-operations.csv"]) == _numbers(wanted)
    assert [row["operation"] for row in saved["session-segments.csv"]] == [row[0] for row in ROWS]
    assert [int(row["end_frame"]) for row in saved["session-segments.csv"]] == [row[2] for row in ROWS]
    (box,) = saved["session-boxes.csv"]
    assert float(box['Tape, "wide"']) == pytest.approx(0.4)
    assert float(box["seconds"]) == 12
    page.get_by_text("Show all 5").click()
    page.get_by_role("button", name="Label", exact=True).click()
    assert place(page) == pytest.approx(160.5 / 25)


def test_progress_is_shown_and_a_timeline_can_be_cancelled_and_asked_again(opened, server: PageServer, videos):
    page = opened()
    server.held = True
    choose(page, videos["session.mp4"])
    page.locator("#doing", has_text="8 of 8 parts seen").wait_for()
    assert page.locator("#progress").evaluate("(bar) => bar.value") == 1
    page.locator("#cancel").focus()
    page.keyboard.press("Enter")
    page.get_by_text("Cancelled.").first.wait_for()
    assert server.left.get(timeout=WAIT_S) == "/timeline"
    assert page.locator("#retry").evaluate("(one) => one === document.activeElement")
    server.held = False
    page.keyboard.press("Enter")
    page.locator("#study").wait_for()


def test_a_clip_is_cancelled_where_it_is_answered_too(opened, server: PageServer, videos):
    page = opened()
    server.held = True
    choose(page, videos["clip.mp4"])
    page.get_by_text("Waiting for the model").first.wait_for()
    page.locator("#cancel").click()
    page.get_by_text("Cancelled.").first.wait_for()
    assert server.left.get(timeout=WAIT_S) == "/predict"
    choose(page, videos["session.mp4"])
    server.held = False
    page.locator("#study").wait_for()
    assert not page.locator("#trouble").is_visible()


def test_a_token_is_asked_for_and_kept_in_this_tab_only(opened, server: PageServer, videos):
    server.token = "seven words"
    page = opened()
    choose(page, videos["clip.mp4"])
    page.get_by_role("alert").get_by_text("The service asks for a token.").wait_for()
    for token in ("wrong", "seven words"):
        assert page.locator("#token").evaluate("(one) => one === document.activeElement")
        page.keyboard.type(token)
        page.keyboard.press("Enter")
        if token == "wrong":
            page.get_by_role("alert").get_by_text("does not accept this token").wait_for()
    page.locator("#pairs img").first.wait_for()
    assert not page.locator("#trouble").is_visible()
    assert [one.authorization for one in server.log] == [
        None,
        "Bearer wrong",
        "Bearer seven words",
        "Bearer seven words",
    ]
    kept = page.evaluate("() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
    assert kept == [["seven words"], [], ""]
    page.reload()
    page.get_by_role("button", name="Forget it").click()
    assert page.evaluate("() => sessionStorage.length") == 0


def test_a_full_service_counts_down_to_a_retry(opened, server: PageServer, videos):
    page = opened()
    page.clock.install()
    server.refusals = [JSONResponse({"error": "full"}, 429, {"Retry-After": "7"})]
    choose(page, videos["clip.mp4"])
    page.get_by_role("alert").get_by_text("Too many videos are waiting").wait_for()
    page.get_by_text("in 7 s").wait_for()
    assert not page.locator("#retry").is_visible()
    page.clock.run_for(4000)
    page.get_by_text("in 3 s").wait_for()
    page.clock.run_for(3500)
    page.get_by_role("button", name="Try again").click()
    page.locator("#pairs img").first.wait_for()
    assert not page.locator("#trouble").is_visible()


def test_refusals_are_plain_sentences(opened, server: PageServer, videos):
    page = opened()
    for status, body, sentence, again in (
        (400, {"error": "clip: it is too short. Give 0.8 s."}, "clip: it is too short. Give 0.8 s.", False),
        (413, {"error": "The upload is larger than 64 MB."}, "The upload is larger than 64 MB.", False),
        (504, None, "did not finish in time", True),
        (500, None, "failed (status 500)", True),
    ):
        server.refusals = [JSONResponse(body, status)]
        choose(page, videos["clip.mp4"])
        page.get_by_role("alert").get_by_text(sentence).wait_for()
        assert page.locator("#retry").is_visible() == again
        assert not page.locator("#work").is_visible()
    page.locator("#retry").click()
    page.locator("#pairs img").first.wait_for()


def test_an_error_within_the_stream_and_a_lost_network_are_told(opened, server: PageServer, videos):
    page = opened()
    server.answers["/timeline"] = [{"event": "error", "error": "session: frame 7 cannot be decoded."}]
    choose(page, videos["session.mp4"])
    page.get_by_role("alert").get_by_text("session: frame 7 cannot be decoded.").wait_for()
    server.answers["/timeline"] = [{"event": "progress", "done": 1, "of": 2}]
    page.locator("#retry").click()
    page.get_by_role("alert").get_by_text("The answer broke off before its end.").wait_for()
    page.context.set_offline(True)
    page.locator("#retry").click()
    page.get_by_role("alert").get_by_text("offline").wait_for()


def test_what_the_browser_cannot_play_is_answered_all_the_same(opened, server: PageServer, videos):
    page = opened()
    server.answers["/keyframes"] = page_server.keyframes(60)
    choose(page, videos["short.avi"])
    page.locator("#unplayable").wait_for()
    page.locator("#now").wait_for()
    assert [one.path for one in server.log] == ["/keyframes", "/predict"]
    assert share(page.locator(".segment"), page.locator(".track"))[0] == pytest.approx(20 / 60, abs=0.005)
    assert page.locator(".keyframe").count() == 8
    server.answers["/keyframes"] = page_server.keyframes(125)
    choose(page, videos["long.avi"])
    page.locator("#study").wait_for()
    assert server.log[-1].path == "/timeline"
    page.locator(".segment").nth(1).click()
    assert "Put Items" in page.locator("#now").inner_text()
    assert share(page.locator("#playhead"), page.locator(".track"))[0] == pytest.approx(75.5 / 300, abs=0.01)


def test_everything_is_reached_by_keyboard_alone(opened, videos):
    page = opened()
    page.on("filechooser", lambda _: None)  # from here on the browser shows no window of its own
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(videos["session.mp4"])
    page.locator("#study").wait_for()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("""() => {
          const one = document.activeElement, ring = getComputedStyle(one);
          return [one.ariaLabel || one.textContent || one.id || one.tagName, ring.outlineStyle, one.tagName];
        }""")
        )
        if reached[-1][2] == "BODY":
            break
    names = "\n".join(name for name, *_ in reached)
    assert sum(name.startswith(("Box Setup, 0:00.0", "Put Items, 0:03.0")) for name, *_ in reached) == 1
    for name in ("Skipped", "Repeated", "Download as CSV: Operations", "Download as CSV: 1 box", "Show all 5"):
        assert name in names
    assert {ring for _, ring, tag in reached if tag not in ("BODY", "VIDEO")} == {"solid"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only_and_everything_can_be_touched_and_read(opened, videos, scheme):
    page = opened(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2, color_scheme=scheme)
    assert contrast(page) == []
    for video, last in (("session.mp4", "#study"), ("clip.mp4", "#pairs")):
        choose(page, videos[video])
        page.locator(last).wait_for()
        page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert page.evaluate("() => document.documentElement.scrollWidth") == 320
        # a narrow operation in the bar is also a row of the table, where it has its full size
        small = page.locator("button:visible:not(.segment)").evaluate_all(
            "(all) => all.filter((one) => Math.min(one.offsetWidth, one.offsetHeight) < 44).map((one) => one.innerText)"
        )
        assert small == []
        assert contrast(page) == []
    page.locator(".segment").tap()
    assert place(page) == pytest.approx(20.5 / 25)
