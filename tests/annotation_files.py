"""Labelled stretches written as people's annotation tools write them, for the tests that read them back."""

import csv
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

Stretch = tuple[int, int, str]  # start and end in milliseconds, label


def write_csv(path: Path, videos: dict[str, list[Stretch]], users: dict[str, str] | None = None) -> Path:
    """`segments.csv`, with the column `user` where `users` (video → user) are given."""
    header = ["video", "start", "end", "label", *(["user"] if users else [])]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for video, stretches in videos.items():
            for start, end, label in stretches:
                writer.writerow([video, start / 1000, end / 1000, label, *([users[video]] if users else [])])
    return path


def write_eaf(
    path: Path,
    video: str,
    tiers: dict[str, list[Stretch]],
    participant: str | None = None,
    origin: int = 0,
    url: str = "file:///C:/somewhere/else/",
    before: str = "",
) -> Path:
    """An ELAN file beside its video: a tier for each of `tiers`; times are the video's, `origin` its offset."""
    times = sorted({time for stretches in tiers.values() for stretch in stretches for time in stretch[:2]})
    slots = {time: f"ts{number}" for number, time in enumerate(times, 1)}
    offset = f' TIME_ORIGIN="{origin}"' if origin else ""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>' + before,
        '<ANNOTATION_DOCUMENT AUTHOR="" FORMAT="3.0" VERSION="3.0">',
        '<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">',
        f'<MEDIA_DESCRIPTOR MEDIA_URL="{url}{video}" MIME_TYPE="video/mp4" RELATIVE_MEDIA_URL="./{video}"{offset}/>',
        "</HEADER><TIME_ORDER>",
        *(f'<TIME_SLOT TIME_SLOT_ID="{slot}" TIME_VALUE="{time - origin}"/>' for time, slot in slots.items()),
        "</TIME_ORDER>",
    ]
    who = f" PARTICIPANT={quoteattr(participant)}" if participant else ""
    for name, stretches in tiers.items():
        lines.append(f'<TIER LINGUISTIC_TYPE_REF="default-lt"{who} TIER_ID={quoteattr(name)}>')
        for number, (start, end, label) in enumerate(stretches, 1):
            refs = f'TIME_SLOT_REF1="{slots[start]}" TIME_SLOT_REF2="{slots[end]}"'
            value = f"<ANNOTATION_VALUE>{escape(label)}</ANNOTATION_VALUE>"
            id_ = f'ANNOTATION_ID="a{number}"'
            lines.append(f"<ANNOTATION><ALIGNABLE_ANNOTATION {id_} {refs}>{value}</ALIGNABLE_ANNOTATION></ANNOTATION>")
        lines.append("</TIER>")
    path.write_text("\n".join([*lines, "</ANNOTATION_DOCUMENT>"]), encoding="utf-8")
    return path


def timeline(stretches: list[Stretch], fps: float) -> list[dict[str, Any]]:
    """Results of `TimelineLabels`, whose frames count from 1 and belong to the range at both ends."""
    return [
        {
            "type": "timelinelabels",
            "value": {
                "ranges": [{"start": round(start * fps / 1000) + 1, "end": round(end * fps / 1000)}],
                "timelinelabels": [label],
            },
        }
        for start, end, label in stretches
    ]


def task(number: int, video: str, *annotations: dict[str, Any], **data: str) -> dict[str, Any]:
    """A task of the JSON export, its video uploaded."""
    uploaded = f"/data/upload/7/{number:08x}-{video}"
    return {"id": number, "data": {"video": uploaded, **data}, "annotations": list(annotations), "predictions": []}


def minimal(number: int, video: str, stretches: list[Stretch], fps: float) -> dict[str, Any]:
    """A task of the JSON-MIN export."""
    values = [result["value"] for result in timeline(stretches, fps)]
    return {"video": f"/data/upload/7/{number:08x}-{video}", "id": number, "videoLabels": values, "annotator": 1}


def write_export(path: Path, videos: dict[str, list[Stretch]], fps: float) -> Path:
    """Label Studio's JSON with one annotation a video."""
    tasks = [
        task(number, video, {"result": timeline(stretches, fps), "was_cancelled": False, "ground_truth": False})
        for number, (video, stretches) in enumerate(videos.items(), 1)
    ]
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path
