"""How near the cuts of each method come to the true boundaries, on the clips that `make demo` left.

`python -m bench.cuts` prints ARCHITECTURE's table, over the clips of training and validation persons: cuts are chosen
from the picture alone, but how they are chosen was chosen by looking at them. Apart from `python -m bench`, as it
compares no times.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean, median

import numpy as np

from pipelines.common.intervals import iou
from pipelines.common.keyframes import Keyframes, KeyframeSettings, Signal, choose
from pipelines.openpack.clip_plan import Clip
from pipelines.openpack.clips import read_clips
from pipelines.openpack.normalise import VIDEO, read_frames
from pipelines.openpack.splits import SPLITS
from pipelines.openpack.windows import look, stored

METHODS = {
    "`entropy`": KeyframeSettings(),
    "`entropy`, every frame alike": KeyframeSettings(min_segment=5, passage=0),
    "`motion`": KeyframeSettings(method="motion"),
    "`stride`": KeyframeSettings(method="stride"),
    "`uniform`": KeyframeSettings(method="uniform"),
}
HEADS = (
    "method",
    "boundary to the nearest cut, median frames",
    "within 4 frames",
    "mean IoU of the best span, clips with a boundary",
    "pairs with a boundary between their frames",
)


def measured(data: Path) -> Iterator[tuple[Clip, Signal]]:
    """Each clip of training and validation persons below the stages' folder, with what was measured of its frames."""
    for user in (*SPLITS["train"], *SPLITS["val"]):
        for session in sorted(path for path in (data / "clips" / user).iterdir() if path.is_dir()):
            clips, video = read_clips(session), data / "normalized_video" / user / session.name
            starts, length = [clip.start_frame for clip in clips], clips[0].n_frames if clips else 0
            repeated = read_frames(video)["repeated"].to_numpy(bool)
            seen = look(stored(video / VIDEO, repeated), starts, length)
            for clip, stretch in zip(clips, seen, strict=True):
                yield clip, stretch.signal


def row(name: str, chosen: list[tuple[Clip, Keyframes]]) -> list[str]:
    far, best, mixed = [], [], 0
    for clip, keyframes in chosen:
        far += [min(abs(boundary - cut) for cut in keyframes.bounds[1:-1]) for boundary in clip.boundaries]
        if clip.boundaries:
            truth = clip.target.start, clip.target.end
            best.append(max(iou(span, truth) for span in combinations(keyframes.bounds, 2)))
        mixed += sum(low < boundary <= high for low, high in keyframes.pairs for boundary in clip.boundaries)
    within = np.mean(np.array(far) <= 4)
    return [name, f"{median(far):.0f}", f"{within:.0%}", f"{fmean(best):.3f}", str(mixed)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the methods that choose keyframes.")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the stages")
    clips = list(measured(parser.parse_args().data))
    rows = [
        row(name, [(clip, choose(signal, settings)) for clip, signal in clips]) for name, settings in METHODS.items()
    ]
    boundaries = sum(len(clip.boundaries) for clip, _ in clips)
    pairs = sum(len(keyframes) - 1 for keyframes in (clip.bounds for clip, _ in clips))
    print(f"{len(clips)} clips with {boundaries} boundaries, {pairs} pairs\n")
    for line in [list(HEADS), ["---", *["---:"] * (len(HEADS) - 1)], *rows]:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
