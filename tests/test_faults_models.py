"""Training and evaluation that are killed: their processes end, their folders are whole or absent, and they go on."""

import shutil
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest
from kills import alive, content, hidden, kill_at, run, run_and_kill, wait_until

from pipelines.openpack.evaluate import evaluate
from pipelines.openpack.finetune import finetune
from pipelines.openpack.settings import EvaluationSettings, load_settings

CHECKPOINTS = "adapter.checkpoints"


def train(base: Path, shards: Path, root: Path) -> None:
    settings = load_settings(preset="tiny").finetune
    loop = settings.loop.model_copy(update={"steps": 3, "batch_size": 2, "save_steps": 1, "threads": 1})
    lora = settings.lora.model_copy(update={"rank": 4})
    # one process: that two of them end and go on alike is test_finetune's and test_ranks' to show
    made = settings.model_copy(update={"loop": loop, "lora": lora, "processes": 1})
    finetune(base, shards, root / "adapter", made)


def score(base: Path, shards: Path, root: Path) -> None:
    settings = EvaluationSettings(clips=5, batch_size=4, device="cpu")
    evaluate(base, root / "adapter", shards, root / "evaluation", settings)


@pytest.fixture(scope="module")
def trained(toy_base: Path, toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with all its checkpoints, killed when it was about to save the adapter."""
    root = tmp_path_factory.mktemp("trained")
    process = kill_at(0, train, toy_base, toy_shards, root, root=root, after=".adapter.part-")
    wait_until(lambda: list(root.glob(f"{CHECKPOINTS}/*/step-000001")), seconds=120)
    children = psutil.Process(process.pid).children(recursive=True)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert children  # one makes samples ahead, with torch in its memory
    wait_until(lambda: not alive(children), seconds=5)
    # the lock file of a killed process stays, held by nobody, until the next one goes
    assert sorted(path.name for path in root.iterdir()) == [".adapter.lock", CHECKPOINTS]
    return root


def copy(trained: Path, root: Path) -> Path:
    return shutil.copytree(trained, root, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def finished(
    trained: Path, toy_base: Path, toy_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """The adapter of an undisturbed end of the training, and how many events its end takes."""
    root = copy(trained, tmp_path_factory.mktemp("undisturbed"))
    events = run(train, toy_base, toy_shards, root, root=root, after=".adapter.part-")
    assert [path.name for path in root.iterdir()] == ["adapter"]
    return root / "adapter", events


def test_an_adapter_is_whole_or_absent_and_so_is_what_it_goes_on_from(
    trained: Path, finished: tuple[Path, int], toy_base: Path, toy_shards: Path, tmp_path: Path
):
    root, (adapter, events) = copy(trained, tmp_path), finished
    end = partial(run_and_kill, root=root, after=".adapter.part-")
    for event in (3, 7):  # while the adapter is written
        end(event, train, toy_base, toy_shards, root)
        assert not (root / "adapter").exists()
        assert content(root / CHECKPOINTS) == content(trained / CHECKPOINTS)
    end(events - 4, train, toy_base, toy_shards, root)  # while the checkpoints go, which the adapter replaces
    assert content(root / "adapter") == content(adapter)
    assert not (root / CHECKPOINTS).exists()


def test_an_evaluation_is_whole_or_absent(finished: tuple[Path, int], toy_base: Path, toy_shards: Path, tmp_path: Path):
    whole, killed = (shutil.copytree(finished[0], tmp_path / name / "adapter").parent for name in ("whole", "killed"))
    run(score, toy_base, toy_shards, whole, root=whole)
    for event in (1, 4):
        run_and_kill(event, score, toy_base, toy_shards, killed, root=killed, after=".evaluation.part-")
        assert not (killed / "evaluation").exists()
    run(score, toy_base, toy_shards, killed, root=killed)
    assert content(killed / "evaluation") == content(whole / "evaluation")
    assert not hidden(killed)
