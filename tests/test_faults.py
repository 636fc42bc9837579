"""The checks of a session's files: silent on what the stages make, and a sentence on each thing that is wrong."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from assets.openpack.faults import label_faults, video_faults
from pipelines.common.clip_format import DEFAULT_FORMAT, VideoFormat
from pipelines.common.files import read_jsonl, write_jsonl
from pipelines.openpack.normalise import FRAMES

SESSION = Path("U0101/S0100")


@pytest.fixture
def session(toy_shards: Path, tmp_path: Path) -> Path:
    """A folder with a raw session, its video and its clips, free to be damaged."""
    for stage in ("raw_session", "normalized_video", "clips"):
        shutil.copytree(toy_shards.parent / stage / SESSION, tmp_path / stage)
    return tmp_path


def _faults(session: Path, video: VideoFormat) -> list[str]:
    return video_faults(session / "raw_session", session / "normalized_video", video)


def test_what_the_stages_make_has_no_faults(session: Path) -> None:
    assert _faults(session, DEFAULT_FORMAT) == []
    assert label_faults(session / "clips") == []


def test_another_rate_or_size_is_told(session: Path) -> None:
    assert _faults(session, VideoFormat(size=224)) == ["the picture is 336×336, not 224×224"]
    assert _faults(session, VideoFormat(fps=24))[0] == "frame 1 is not at 24 frames a second"


def test_a_lost_source_frame_is_told(session: Path) -> None:
    table = session / "normalized_video" / FRAMES
    frames = pd.read_parquet(table)
    frames.loc[frames["source_frame"] == 40, "source_frame"] = 39  # held for longer, as a dropped frame would be
    frames.to_parquet(table, index=False)
    assert _faults(session, DEFAULT_FORMAT) == ["1 source frames are lost, the first is 40"]
    frames.iloc[:-1].to_parquet(table, index=False)
    assert _faults(session, DEFAULT_FORMAT)[0] == f"the video has {len(frames)} frames and its table {len(frames) - 1}"


def test_an_unknown_label_is_told(session: Path) -> None:
    path = session / "clips" / "clips.jsonl"
    rows = read_jsonl(path)
    rows[0]["target"]["next"] = 1234
    write_jsonl(path, rows)
    assert label_faults(session / "clips") == [f"{rows[0]['clip_id']} has operation 1234"]
