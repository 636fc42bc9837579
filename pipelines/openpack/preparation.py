"""How videos became what a model is shown: written beside the data, and read by whatever has to do the same again.

Belongs here: two files and how they travel. The stage normalized_video writes `normalised.json` (`Normalised`) into
each session's folder, the stage clips `preparation.json` (`Preparation`). The latter goes on with the data, into
shards, adapter, evaluation and bundle, so that training, evaluation and service prepare videos in one way whatever the
settings of the day are. Only the stages that make videos and clips take a format from settings.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from pipelines.common.clip_format import ClipFormat, VideoFormat
from pipelines.common.errors import DataError
from pipelines.common.files import read_json
from pipelines.common.keyframes import KeyframeSettings
from pipelines.common.settings import Settings
from pipelines.openpack.settings import AllSettings, NormaliseSettings

NORMALISED, PREPARATION = "normalised.json", "preparation.json"


class Normalised(Settings):
    """How a session became a video of `video_format`."""

    video_format: VideoFormat
    normalise: NormaliseSettings


class Preparation(Settings):
    """How a video became clips of `clip_format`, and which of their frames are shown."""

    clip_format: ClipFormat
    normalise: NormaliseSettings
    keyframes: KeyframeSettings

    @classmethod
    def of(cls, settings: AllSettings) -> Preparation:
        """What the settings ask of data that is made now."""
        parts = settings.clip_format, settings.normalise, settings.keyframes
        return cls(clip_format=parts[0], normalise=parts[1], keyframes=parts[2])


def read_normalised(folder: Path) -> Normalised:
    """Of a session's folder of the stage normalized_video; DataError where it does not say, or not in this version."""
    try:
        return Normalised.model_validate(read_json(folder / NORMALISED))
    except ValidationError as error:
        raise _unreadable(error, folder / NORMALISED, "normalized_video") from None


def read_preparation(folder: Path, stage: str) -> Preparation:
    """Of a folder that `stage` wrote; DataError where it does not say, or not in this version."""
    try:
        return Preparation.model_validate(read_json(folder / PREPARATION))
    except ValidationError as error:
        raise _unreadable(error, folder / PREPARATION, stage) from None


def require_same(ours: Preparation, theirs: Preparation, what: str, file: Path, cure: str) -> None:
    """DataError that names the first difference, where data that is to go together was prepared in two ways."""
    if ours == theirs:
        return
    for name in Preparation.model_fields:
        one, other = (getattr(each, name).model_dump(mode="json") for each in (ours, theirs))
        for key in one:
            if one[key] != other[key]:
                raise DataError(f"{what}: {name}.{key} is {other[key]}, and {one[key]} here", file=file, cure=cure)


def _unreadable(error: ValidationError, file: Path, stage: str) -> DataError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return DataError(f"not of this version ({first['msg']})", file=file, where=where, cure=f"Run {stage} again.")
