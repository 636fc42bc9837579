"""The plain handler that a service is usually begun with, for `bench.service` to compare with: FastAPI, one process.

Inside of the request handler the upload goes through the stages' own steps, as the brief lists them: ffmpeg writes it
at the usual rate and size, its frames are read back, keyframes are chosen, the same model writes its answer. `python -m
bench.plain_handler <bundle> <port>`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, UploadFile

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.media import packet_times, transcode
from pipelines.openpack.bundle import read_bundle
from pipelines.openpack.predict import Predictor
from pipelines.openpack.prompt import brief_answer
from pipelines.openpack.question import clip_question, shown_frames
from pipelines.openpack.settings import NormaliseSettings
from pipelines.openpack.windows import look, stored

ENCODING = {**NormaliseSettings().encoding(DEFAULT_FORMAT), "size": DEFAULT_FORMAT.size}


def application(folder: Path) -> FastAPI:
    """Answers with the bundle in `folder`."""
    bundle = read_bundle(folder)
    taxonomy = bundle.taxonomy
    predictor = Predictor.load(bundle.base, bundle.adapter, taxonomy, bundle.settings.evaluation, bundle.calibration)
    app = FastAPI()

    @app.post("/predict")
    async def predict(video: UploadFile) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            upload, normal = Path(folder) / "upload.mp4", Path(folder) / "video.mp4"
            upload.write_bytes(await video.read())
            shown = transcode(upload, normal, packet_times(upload), tolerance_s=0.001, **ENCODING)
            film = stored(normal, np.diff(shown, prepend=-1) == 0)
            seen = next(look(film, [0], min(len(shown), DEFAULT_FORMAT.frames)))
        frames = shown_frames(seen, bundle.preparation.keyframes, predictor.size)
        question = clip_question(*frames, taxonomy, DEFAULT_FORMAT.fps)
        (written,) = predictor.generate(["clip"], [question])
        said = written.target  # None where the model wrote something else; that costs no less
        answer = said and brief_answer(taxonomy, "clip", said.operation, said.start, said.end, said.next)
        return {"answer": answer}

    @app.get("/readyz")
    async def readyz() -> None: ...

    return app


if __name__ == "__main__":
    uvicorn.run(application(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
