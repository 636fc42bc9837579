"""The plain handler that a service is usually begun with, for `bench.service` to compare with: FastAPI, one process.

The video is decoded and the model writes its answer inside of the request handler, by the same code and the same model
as the service: only how they are put behind HTTP differs. `python -m bench.plain_handler <bundle> <port>`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile

from pipelines.openpack.bundle import read_bundle
from pipelines.openpack.predict import Predictor
from pipelines.openpack.prompt import brief_answer
from pipelines.openpack.question import video_question


def application(folder: Path) -> FastAPI:
    """Answers with the bundle in `folder`."""
    bundle = read_bundle(folder)
    taxonomy = bundle.taxonomy
    predictor = Predictor.load(bundle.base, bundle.adapter, taxonomy, bundle.settings.evaluation, bundle.calibration)
    app = FastAPI()

    @app.post("/predict")
    async def predict(video: UploadFile) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile() as file:
            file.write(await video.read())
            file.flush()
            question = video_question(Path(file.name), bundle.settings.keyframes, taxonomy, predictor.size)
        (written,) = predictor.generate(["clip"], [question])
        said = written.target  # None where the model wrote something else; that costs no less
        answer = said and brief_answer(taxonomy, "clip", said.operation, said.start, said.end, said.next)
        return {"answer": answer}

    @app.get("/readyz")
    async def readyz() -> None: ...

    return app


if __name__ == "__main__":
    uvicorn.run(application(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
