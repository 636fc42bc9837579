"""Broken media and odd requests: whatever comes in, the service answers with a sentence and is as it was.

The long form, for hours if one likes: `python -m tests.fuzz_service --inputs 10000`.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import fuzz_service
import httpx
import psutil
import pytest
import schemathesis
import served_toy
from hypothesis import HealthCheck, given, settings
from kills import wait_until
from schemathesis.specs.openapi.checks import positive_data_acceptance
from toy_bento import Served

INPUTS = 200
CASES = 12  # of each operation


@pytest.fixture(scope="module")
def served(toy_base: Path, tmp_path_factory) -> Iterator[Served]:
    with served_toy.serving(tmp_path_factory.mktemp("fuzz"), toy_base) as one:
        yield one


def test_broken_media_are_refused_and_leave_nothing(served: Served, tmp_path: Path) -> None:
    worker = next(one for one in served.process.children() if "_bentoml_impl.worker.service" in one.cmdline())
    report = fuzz_service.Report()
    fuzz_service.fuzz(served, islice(fuzz_service.inputs(fuzz_service.seeds(tmp_path)), INPUTS), report)
    assert report.broken == []
    assert sum(report.answers.values()) == INPUTS
    for route in dict.fromkeys(fuzz_service.ROUTES):  # both kinds came, or the corpus would prove little
        assert report.answers[route, 200] >= 5
        assert report.answers[route, 400] >= 5
    wait_until(lambda: not fuzz_service.left(served))
    assert worker.is_running()
    assert worker.status() != psutil.STATUS_ZOMBIE


def test_requests_by_its_own_description_get_what_it_describes(served: Served) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/docs.json")
    asked: set[str] = set()
    for operation in (result.ok() for result in schema.get_all_operations()):

        @settings(
            max_examples=CASES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            response = case.call(timeout=60)
            assert response.status_code < 500, response.text
            case.validate_response(response, excluded_checks=[positive_data_acceptance])  # its bytes are no video

        ask()
        asked.add(operation.path)
    assert {"/predict", "/keyframes", "/timeline", "/readyz", "/metrics"} <= asked
    assert httpx.get(f"{served.url}/readyz").is_success
