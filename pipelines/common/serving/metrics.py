"""What Prometheus can ask of a service that works on uploads.

Belongs here: metrics that hold for any such service. What the answers were (`pipelines.openpack.serve`) does not.
prometheus_client keeps them in the files of PROMETHEUS_MULTIPROC_DIR where that is set, as it is for BentoML's workers.
BentoML has no /metrics where its own are switched off, so that `shown` is what a service answers there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

# From one forward pass of a small model to the deadline of a request.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

REQUEST_SECONDS = Histogram(
    "serving_request_seconds", "Seconds of whole requests, by route and status", ["route", "status"], buckets=_SECONDS
)
STAGE_SECONDS = Histogram("serving_stage_seconds", "Seconds of a request in each stage", ["stage"], buckets=_SECONDS)
QUEUE_LENGTH = Gauge("serving_queue_length", "Clips that wait to be scored", multiprocess_mode="livesum")
IN_FLIGHT = Gauge("serving_in_flight", "Requests that are admitted", ["route"], multiprocess_mode="livesum")
BATCH_SIZE = Histogram("serving_batch_size", "Clips scored at once", buckets=(1, 2, 4, 8, 16, 32, 64))
REFUSED = Counter("serving_refused_total", "Requests without an answer, by reason", ["reason"])
RETRIED = Counter("serving_child_retried_total", "Uploads given to a second process because the first one died")
MODEL_LOADED = Gauge(
    "serving_model_loaded", "1 for the model that answers", ["model", "adapter", "data"], multiprocess_mode="livemax"
)
MODEL_REJECTED = Counter("serving_model_rejected_total", "Models of the store that could not be loaded")


def shown() -> tuple[bytes, str]:
    """All metrics of all processes in Prometheus' words, and what kind of text that is."""
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST


def forget_the_dead() -> None:
    """Removes gauges of processes that are gone: one that was killed cannot do so itself, and would count for ever."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return
    for path in Path(folder).glob("gauge_live*_*.db"):
        found = re.fullmatch(r"gauge_live\w*_(\d+)\.db", path.name)
        if found and not Path("/proc", found[1]).exists():
            mark_process_dead(int(found[1]))
