"""The one graph: what it holds, what it reads from the environment, and what loading it costs."""

import base64
import io
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config
from PIL import Image

from assets.build import build
from assets.openpack import views
from pipelines.common.errors import SetupError
from pipelines.common.pictures import LARGEST
from pipelines.openpack.settings import AllSettings, ClipSettings, load_settings

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "pandas", "transformers", "bentoml", "matplotlib", "decord", "PIL"}
PARENTS = {
    "raw_session": {"release"},
    "normalized_video": {"raw_session"},
    "clips": {"normalized_video", "raw_session"},
    "shards": {"clips"},
    "base_model": set(),
    "adapter": {"base_model", "shards"},
    "evaluation": {"base_model", "adapter", "shards"},
    "bento": {"base_model", "adapter", "evaluation"},
}


@pytest.fixture(scope="module")
def graph():
    return build(AllSettings()).defs.resolve_asset_graph()


def test_the_graph_is_the_one_that_the_readme_draws(graph) -> None:
    parents = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.materializable_asset_keys
    }
    assert parents == PARENTS
    partitioned = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).is_partitioned}
    assert partitioned == {"release", "raw_session", "normalized_video", "clips"}
    assert list(graph.get(dg.AssetKey("clips")).partitions_def.get_partition_keys()) == [
        f"U010{i}" for i in range(1, 9)
    ]


def test_training_and_scoring_share_one_pool(graph) -> None:
    pools = {key.to_user_string(): graph.get(key).pools for key in graph.materializable_asset_keys}
    assert {name for name, pool in pools.items() if pool} == {"base_model", "adapter", "evaluation"}
    assert set().union(*pools.values()) == {"gpu"}


def test_every_check_of_the_data_blocks_and_sessions_set_aside_only_warn(graph) -> None:
    checks = {(key.asset_key.to_user_string(), key.name): graph.get(key).blocking for key in graph.asset_check_keys}
    assert {name for name, blocking in checks.items() if blocking} == {
        ("normalized_video", "video_complete"),
        ("clips", "labels_known"),
        ("shards", "persons_apart"),
        ("shards", "digests_match"),
        ("evaluation", "tuned_beats_base"),
    }
    warned = {("raw_session",), ("normalized_video",), ("clips",)}
    assert {name[:1] for name, blocking in checks.items() if not blocking} == warned


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ({"normalise": {"crf": 30}}, {"normalized_video"}),
        ({"keyframes": {"method": "motion"}}, {"clips"}),  # with the data they go on as far as into the bento
        ({"clip_format": {"seconds": 8}}, {"clips", "base_model"}),  # no other video, but numbers up to 200
        ({"clip_format": {"size": 448}}, {"normalized_video", "clips"}),
        ({"evaluation": {"clips": 20}}, {"evaluation", "bento"}),
        ({"simulation": {"boxes": 2}}, set()),  # changes what is observed of `release`, not how it is worked on
    ],
)
def test_a_setting_is_in_the_code_version_of_what_reads_it(graph, changed: dict, stale: set[str]) -> None:
    other = build(AllSettings.model_validate(changed)).defs.resolve_asset_graph()
    keys = graph.materializable_asset_keys
    differ = {key.to_user_string() for key in keys if graph.get(key).code_version != other.get(key).code_version}
    assert differ == stale


def test_loading_the_definitions_loads_nothing_heavy() -> None:
    code = "import definitions, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(done.stdout.split())


def test_workspace_and_instance_files_say_what_the_project_needs() -> None:
    (location,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert location["python_module"] == {"module_name": "definitions", "working_directory": "."}
    config, _ = dagster_instance_config(str(ROOT))  # raises what Dagster would at its start
    assert config["telemetry"] == {"enabled": False}
    assert config["concurrency"]["pools"] == {"default_limit": 1, "granularity": "op"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OPENPACK_SOURCE": "cloud"}, "OPENPACK_SOURCE=cloud is unknown. Set it to simulated, local, zenodo"),
        ({"OPENPACK_SOURCE": "recordings"}, "OPENPACK_SOURCE=recordings needs OPENPACK_ROOT"),
        ({"OPENPACK_SOURCE": "zenodo", "OPENPACK_VIEW": "rgb"}, "OPENPACK_SOURCE=zenodo has no view rgb"),
        ({"OPENPACK_SOURCE": "local"}, "OPENPACK_SOURCE=local needs OPENPACK_ROOT"),
        ({"OPENPACK_VIEW": "lidar"}, "OPENPACK_VIEW=lidar is unknown"),
        ({"OPENPACK_SOURCE": "local", "OPENPACK_ROOT": "/nowhere"}, "/nowhere: no user's folder is here"),
    ],
)
def test_variables_that_cannot_be_used_say_so(monkeypatch, variables: dict[str, str], message: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=re.escape(message)):
        build(AllSettings())


def test_more_users_than_dagster_keeps_track_of_are_refused(tmp_path: Path, monkeypatch) -> None:
    for number in range(100):
        (tmp_path / f"U{number:04d}").mkdir()
    monkeypatch.setenv("OPENPACK_SOURCE", "local")
    monkeypatch.setenv("OPENPACK_ROOT", str(tmp_path))
    with pytest.raises(SetupError, match="100 users are more than Dagster keeps track of"):
        build(AllSettings())


def test_the_graph_says_its_settings_and_refuses_a_preset_of_another_kind_of_model(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text('[keyframes]\nmethod = "motion"\n')
    told = build().told
    assert told[0].startswith("settings: preset tiny (that of the embedded model; VLM is not set), file settings.toml")
    assert told[-1] == '    settings.toml: keyframes.method = "motion"'
    monkeypatch.setenv("PRESET", "t4")
    with pytest.raises(SetupError, match=r"the preset t4 \(PRESET=t4\) is for named models"):
        build()
    monkeypatch.setenv("VLM", "Qwen/Qwen2-VL-2B-Instruct")
    assert build().told[0].startswith("settings: preset t4 (PRESET=t4)")


def test_settings_come_from_one_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SETTINGS_FILE", raising=False)
    assert load_settings().clips == ClipSettings()
    (tmp_path / "settings.toml").write_text("[clips]\nseed = 8\n")
    assert load_settings().clips.seed == 8
    (tmp_path / "other.toml").write_text("[clips]\nseed = 9\n")
    monkeypatch.setenv("SETTINGS_FILE", "other.toml")
    assert load_settings().clips.seed == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[clips\n", "not valid TOML"),
        ("[clips]\nsed = 8\n", "clips.sed: no setting has this name; the nearest is clips.seed"),
        ("[clip_format]\nfps = 'many'\n", "clip_format.fps: Input should be a valid integer"),
        (
            "[normalise]\nfps = 30\nsize = 448\n",
            r"normalise: .*fps and size are set in \[clip_format\], for videos and",
        ),
        ("[clip_format]\nfps = 15\nseconds = 2.25\n", "2.25 s at 15 frames a second are no whole number of frames"),
        ("[clip_format]\nsize = 333\n", "clip_format.size: Input should be a multiple of 2"),
        ("[clip_format]\nfps = 15\nseconds = 2\n", "min_segment is more than the 30 frames of a clip"),
        (
            "[clip_format]\nseconds = 2\n[evaluation.timeline]\nstride_s = 3\n",
            "stride_s is more than the 2 s of a clip",
        ),
    ],
)
def test_wrong_settings_name_file_place_and_cure(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(SetupError, match=message) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_commands_say_how_to_start_without_dagster_home(monkeypatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    command = [sys.executable, "-m", "assets.stale"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("DAGSTER_HOME is not set. Use `make stale`")


def test_a_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = f"""
import os, sys, time
from pathlib import Path
from resources.guards import stop_with_parent
stop_with_parent(int(sys.argv[1]))
Path({str(log)!r}).write_text("started")
try:
    time.sleep(60)
except KeyboardInterrupt:
    Path({str(log)!r}).write_text("checkpoint")
"""
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, str(os.getpid())])"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT)
    _wait_for(lambda: log.is_file() and log.read_text() == "started")
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for(lambda: log.read_text() == "checkpoint")


def test_pictures_are_small_and_mark_what_they_say() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 336, 336, 3), dtype=np.uint8)
    strip = views.Strip("U0101_S0100_t0035", list(noise), list(range(5, 125, 15)), 125, marks=[60], span=(0, 60))
    picture = _png(views.contact_sheet([strip] * 3))
    red = (np.asarray(picture).astype(int) @ [1, -1, -1] > 80).sum()
    unmarked = views.Strip(strip.title, strip.pictures, strip.numbers, strip.length)
    assert red > (np.asarray(_png(views.contact_sheet([unmarked] * 3))).astype(int) @ [1, -1, -1] > 80).sum()
    parts = [("Picking", 0.0, 9.5), ("Null", 9.5, 12.0)]
    for view in (
        views.timelines([("S0100", parts), ("S0200", parts)], ["Picking", "Null"]),
        views.curve([1, 2, 3], [2.0, 1.0, 0.5], x="step", y="loss"),
        views.confusion(["Tape", "Label"], [[5, 1], [0, 7]]),
    ):
        assert _png(view).width > 200


def test_tables_are_aligned_markdown() -> None:
    assert views.table(["", "AA@1"], [["base", 0.12345], ["whole|clip", None]]).splitlines() == [
        "|             | AA@1  |",
        "| ----------- | ----- |",
        "| base        | 0.123 |",
        "| whole\\|clip | –     |",
    ]


def _png(markdown: str) -> Image.Image:
    data = base64.b64decode(markdown.partition("base64,")[2].rstrip(")"))
    assert len(data) < LARGEST
    return Image.open(io.BytesIO(data)).convert("RGB")


def _wait_for(happened, seconds: float = 60) -> None:  # starting Python takes that long on a busy machine
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.05)
