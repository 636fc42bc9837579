# syntax=docker/dockerfile:1
# Two images: `service` (the last, so the default) answers videos, `dagster` runs the pipeline and its UI.
# One torch wheel serves CPU and GPU; a GPU only has to be handed to the container (docker run --gpus all).

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PATH=/opt/venv/bin:$PATH \
    BENTOML_DO_NOT_TRACK=True \
    BENTOML_HOME=/app/.bentoml \
    HF_HOME=/home/app/huggingface
# The owner of the bind mounts of docker-compose.yml, so that both sides can write. A volume takes its owner from the
# folder that it is first mounted on. A number as USER, since Kubernetes cannot tell of a name that it is not root.
ARG UID=1000
RUN useradd --create-home --uid "$UID" app \
    && mkdir -p /app/.bentoml /app/.dagster /app/data "$HF_HOME" \
    && chown -R app:app /app "$HF_HOME"
WORKDIR /app

# Exact versions, without a solver, as in the Makefile: it would bring back openpack-toolkit's outdated pins.
FROM base AS uv
RUN pip install --no-cache-dir uv==0.13.8 && uv venv /opt/venv
ENV VIRTUAL_ENV=/opt/venv UV_NO_CACHE=1

FROM uv AS service-packages
COPY requirements-service.lock ./
RUN uv pip install --no-deps -r requirements-service.lock

FROM uv AS dagster-packages
COPY requirements.lock ./
RUN uv pip install --no-deps -r requirements.lock

FROM base AS dagster
COPY --from=dagster-packages /opt/venv /opt/venv
COPY pyproject.toml requirements-service.lock bentofile.yaml workspace.yaml definitions.py service.py ./
COPY pipelines ./pipelines
COPY resources ./resources
COPY assets ./assets
ENV DAGSTER_HOME=/app/.dagster DATA_DIR=/app/data MPLCONFIGDIR=/tmp/matplotlib
USER $UID
EXPOSE 3000
CMD ["dagster-webserver", "--host", "0.0.0.0", "--port", "3000", "--workspace", "workspace.yaml"]

FROM base AS service
COPY --from=service-packages /opt/venv /opt/venv
COPY service.py ./
COPY pipelines ./pipelines
USER $UID
EXPOSE 8000
# Importing torch takes a while on a busy machine; from then on a service that does not answer is ill.
HEALTHCHECK --interval=10s --timeout=6s --start-period=180s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
CMD ["bentoml", "serve", "service:PackagingService", "--host", "0.0.0.0", "--port", "8000"]
