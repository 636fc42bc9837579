"""How frames of the image streams look: what is masked, what a hole is, which joints are drawn, and broken files."""

import json
from pathlib import Path

import numpy as np
import pytest
from media_samples import START_MS, frame_path
from PIL import Image

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.errors import DataError
from pipelines.common.media import VideoReader, VideoWriter
from pipelines.openpack.release import stream_place
from pipelines.openpack.settings import NormaliseSettings
from pipelines.openpack.streams import FARTHEST_GREY, GROUND, LEFT, RIGHT, draw_skeleton, open_pictures

SETTINGS, SIZE = NormaliseSettings(), DEFAULT_FORMAT.size
POSE = np.array([[640 + 30 * (i % 2) * 2 - 30, 200 + 25 * i, 0.9] for i in range(17)], dtype=np.float32)


def write_rgb(folder: Path, ms: int, picture: np.ndarray) -> Path:
    path = frame_path(folder, ms, ".jpg")
    Image.fromarray(picture).save(path, quality=92)
    return path


def write_depth(folder: Path, ms: int, depth: np.ndarray) -> Path:
    path = frame_path(folder, ms, ".png")
    Image.fromarray(depth.astype(np.uint16)).save(path)
    return path


def write_keypoints(path: Path, frames: dict[int, list[np.ndarray]]) -> Path:
    entries = [{"image_id": ms, "keypoints": joints.tolist()} for ms, people in frames.items() for joints in people]
    path.write_text(json.dumps({"annotations": entries, "categories": []}))
    return path


def clocked() -> np.ndarray:
    """A picture with stripes where the clock is burnt in, and four colours below."""
    picture = np.zeros((720, 1280, 3), dtype=np.uint8)
    picture[:64, :800:2] = 255
    for i, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]):
        picture[64:, i * 320 : (i + 1) * 320] = colour
    return picture


def test_rgb_is_stretched_and_its_clock_masked(tmp_path):
    write_rgb(tmp_path, 67, clocked())
    write_rgb(tmp_path, 0, clocked())
    pictures = open_pictures(tmp_path, "rgb", SETTINGS, SIZE)
    assert pictures.times_ms.tolist() == [START_MS, START_MS + 67]  # by time, whatever the order on disk
    picture = pictures.draw(1)
    assert (picture.dtype, picture.shape) == (np.uint8, (336, 336, 3))
    assert not picture[:30, :210].any()
    for i, colour in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]):
        np.testing.assert_allclose(picture[200, i * 84 + 42], colour, atol=12)
    bare = open_pictures(tmp_path, "rgb", NormaliseSettings(rgb_masks=()), SIZE).draw(0)
    assert bare[:30, :210].mean() > 60  # the mask is a setting


def test_mask_covers_the_clock_of_the_real_frames(sample):
    place = stream_place(sample, "U0209", "S0500", "rgb")
    masked = open_pictures(place, "rgb", SETTINGS, SIZE)
    bare = open_pictures(place, "rgb", NormaliseSettings(rgb_masks=()), SIZE)
    assert len(masked.times_ms) == 15
    assert set(np.diff(masked.times_ms).tolist()) <= {66, 67}
    for i in (0, 7, 14):
        hidden, seen = masked.draw(i), bare.draw(i)
        assert (seen[:30, :210].min(-1) > 200).sum() > 300  # white figures
        assert not hidden[:30, :210].any()
        assert (hidden[30:] == seen[30:]).all()
        assert (hidden[:32].min(-1) > 235).sum() < 5  # none of them sticks out


def test_depth_is_bright_near_and_black_only_in_holes(tmp_path):
    depth = np.zeros((720, 1280))
    for i, mm in enumerate([300, 500, 2000, 4000, 6000, 10_000, 65_535]):
        depth[:, 160 * (i + 1) :] = mm  # the first 160 columns stay a hole
    write_depth(tmp_path, 0, depth)
    picture = open_pictures(tmp_path, "depth", SETTINGS, SIZE).draw(0)
    greys = picture[100, 21::42, 0].tolist()
    assert greys[:3] == [0, 255, 255]
    assert greys[3] > greys[4] > greys[5] == greys[6] == greys[7] == FARTHEST_GREY
    assert (picture[..., 0] == picture[..., 2]).all()
    assert set(np.unique(picture)) == set(greys)  # no mean across an edge, at which nothing is


def test_holes_are_told_from_the_farthest_wall_after_coding(tmp_path):
    rng = np.random.default_rng(1)
    cells = rng.random((24, 24)) < 0.5
    depth = np.where(np.kron(cells, np.ones((30, 54)))[:720, :1280] > 0, 6000, 0)
    write_depth(tmp_path, 0, depth)
    picture = open_pictures(tmp_path, "depth", SETTINGS, SIZE).draw(0)
    with VideoWriter(tmp_path / "a.mp4", 25, (336, 336)) as writer:
        writer.write(picture, repeat=3)
    with VideoReader(tmp_path / "a.mp4") as reader:
        coded = reader.frames([2])[0, ..., 0]
    valid = picture[..., 0] > 0
    assert ((coded > FARTHEST_GREY // 2) == valid).mean() > 0.98


def test_keypoints_are_drawn_where_they_are(tmp_path):
    other = POSE + np.array([200, 0, 0], dtype=np.float32)
    path = write_keypoints(tmp_path / "S0100.json", {START_MS + 66: [POSE, other], START_MS: [POSE]})
    pictures = open_pictures(path, "keypoints", SETTINGS, SIZE)
    assert pictures.times_ms.tolist() == [START_MS, START_MS + 66]
    picture = pictures.draw(0)
    assert (picture.dtype, picture.shape) == (np.uint8, (336, 336, 3))
    for joint, (x, y, _) in enumerate(POSE):
        colour = picture[round(y * 336 / 720), round(x * 336 / 1280)]
        assert colour.tolist() == list((225, 225, 225) if joint == 0 else LEFT if joint % 2 else RIGHT)
    assert (picture[:, :100] == GROUND).all()  # and nothing else
    assert (pictures.draw(1)[:, 200:] != GROUND).any()  # the second person


def test_a_joint_that_is_not_trusted_is_left_out_with_its_limbs():
    doubtful = POSE.copy()
    doubtful[9, 2] = 0.29  # the left hand
    full, less = draw_skeleton(POSE[None], SETTINGS, SIZE), draw_skeleton(doubtful[None], SETTINGS, SIZE)
    x, y = round(POSE[9, 0] * 336 / 1280), round(POSE[9, 1] * 336 / 720)
    assert full[y, x].tolist() == list(LEFT)
    # the left knee's limb crosses nothing here, so the ground shows
    assert less[y - 4 : y + 5, x + 4].tolist() == [list(GROUND)] * 9
    assert (draw_skeleton(doubtful[None], NormaliseSettings(joint_confidence=0.2), SIZE) == full).all()
    nobody = POSE * np.array([1, 1, 0], dtype=np.float32)
    assert (draw_skeleton(nobody[None], SETTINGS, SIZE) == GROUND).all()


def test_real_keypoints_are_all_drawn(sample):
    pictures = open_pictures(stream_place(sample, "U0102", "S0100", "keypoints"), "keypoints", SETTINGS, SIZE)
    assert len(pictures.times_ms) == 100
    for i in (0, 50, 99):
        drawn = (pictures.draw(i) != GROUND).any(-1)
        assert 0.005 < drawn.mean() < 0.1
        assert not drawn[:100].any()  # the worker's head is at 40 % of the height
        assert not drawn[:, 250:].any()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("view", "damage"), [("rgb", "cut"), ("depth", "cut"), ("rgb", "text"), ("depth", "8 bit")])
def test_a_broken_frame_is_named(view, damage, tmp_path):
    rng = np.random.default_rng(0)
    for ms in (0, 67, 133):
        if view == "rgb":
            path = write_rgb(tmp_path, ms, rng.integers(0, 255, (72, 128, 3), dtype=np.uint8))
        else:
            path = write_depth(tmp_path, ms, rng.integers(0, 9000, (72, 128)))
    if damage == "cut":
        _cut(path)
    elif damage == "text":
        path.write_text("no picture")
    else:
        Image.new("L", (128, 72)).save(path)
    pictures = open_pictures(tmp_path, view, SETTINGS, SIZE)
    pictures.draw(1)
    with pytest.raises(DataError, match=r"frame 2: the picture cannot be decoded") as error:
        pictures.draw(2)
    assert path.name in str(error.value)


def test_two_frames_of_one_time_and_no_frame_are_refused(tmp_path):
    first = write_rgb(tmp_path, 0, clocked())
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / first.name).write_bytes(first.read_bytes())
    with pytest.raises(DataError, match="same time"):
        open_pictures(tmp_path, "rgb", SETTINGS, SIZE)
    with pytest.raises(DataError, match="no frame of the view depth"):
        open_pictures(tmp_path, "depth", SETTINGS, SIZE)
