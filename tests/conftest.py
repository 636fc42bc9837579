"""Fixtures that more than one test file needs."""

from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "openpack-sample"


@pytest.fixture(scope="session")
def sample() -> Path:
    """The real OpenPack sample; a test that needs it skips, saying so, where it is not there."""
    if not SAMPLE.is_dir():
        pytest.skip("the real OpenPack sample is not beside this checkout (../shared/data/openpack-sample)")
    return SAMPLE
