"""Fixtures that more than one test file needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "openpack-sample"


@pytest.fixture(autouse=True, scope="session")
def _plain_environment() -> Iterator[None]:
    """Tests say themselves which variables are set; those of the person who runs them change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OPENPACK_SOURCE", "OPENPACK_ROOT", "OPENPACK_VIEW", "DATA_DIR", "VLM", "PRESET", "SETTINGS_FILE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def sample() -> Path:
    """The real OpenPack sample; a test that needs it skips, saying so, where it is not there."""
    if not SAMPLE.is_dir():
        pytest.skip("the real OpenPack sample is not beside this checkout (../shared/data/openpack-sample)")
    return SAMPLE


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a training and a test worker who pack one box each, in a session of half a minute."""
    from pipelines.common.keyframes import KeyframeSettings
    from pipelines.openpack import clips, normalise
    from pipelines.openpack.settings import ClipSettings, NormaliseSettings, ShardSettings, SimulationSettings
    from pipelines.openpack.shards import write_shards
    from pipelines.openpack.sources import SimulatedSource

    root = tmp_path_factory.mktemp("data")
    simulation = SimulationSettings(sessions=1, boxes=1, duration_scale=0.3, width=160, height=120)
    for user in ("U0101", "U0108"):
        raw, normalised, cut = (root / stage / user for stage in ("raw_session", "normalized_video", "clips"))
        SimulatedSource(simulation).fetch(user, raw, workers=1)
        normalise.run_user(user, raw, normalised, NormaliseSettings(), workers=1)
        clips.run_user(user, normalised, raw, cut, ClipSettings(), KeyframeSettings(), workers=1)
    write_shards(root / "clips", root / "shards", ShardSettings())
    return root / "shards"


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base model, smaller and after two steps of its training: it answers, and knows nothing."""
    return make_toy_base(tmp_path_factory.mktemp("models") / "base")


def make_toy_base(out: Path) -> Path:
    from pipelines.common.vlm.settings import LoopSettings, TinySettings
    from pipelines.openpack.pretrain import make_base
    from pipelines.openpack.settings import PretrainSettings

    # 64 wide: one block of 4-bit weights; narrower ones bitsandbytes cannot run on a CPU
    tiny = TinySettings(image=28, patch=14, hidden=64, layers=1, heads=2, vision_hidden=32, vision_layers=1)
    loop = LoopSettings(steps=2, batch_size=2, gradient_accumulation_steps=1)
    make_base("tiny", out, PretrainSettings(model=tiny, asked=1, processes=1, loop=loop), progress=str)
    return out


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch with one thread: faster for toys, and sums come in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
