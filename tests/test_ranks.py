"""Two processes, started by the first or by accelerate, train what one with twice the batch trains; here over gloo."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from kills import start, wait_until
from rank_training import train
from safetensors.torch import load_file

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.errors import DataError, SetupError
from pipelines.common.files import digest, read_json
from pipelines.common.vlm.ranks import ALONE, joined, together
from pipelines.common.vlm.settings import LoopSettings, TinySettings
from pipelines.openpack.finetune import finetune, read_adapter, sample_numbers
from pipelines.openpack.pretrain import _drawn_rows
from pipelines.openpack.settings import FinetuneSettings, PretrainSettings, load_settings

HERE = Path(__file__).parent
TOML = """
[finetune]
processes = 2
device = "cpu"
[finetune.loop]
steps = 2
batch_size = 2
save_steps = 1
threads = 1
[finetune.lora]
rank = 4
"""


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes, as the README starts them, with the defaults that accelerate would ask about."""
    defaults = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *defaults]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    done = subprocess.run([*accelerate, *command], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_end_as_one_with_twice_the_batch_over_a_stop_and_a_lack_of_memory(tmp_path: Path):
    launch(str(HERE / "rank_training.py"), str(tmp_path), "2")
    first, second = (read_json(tmp_path / f"said-{rank}.json") for rank in (0, 1))
    losses, weights, _ = train(tmp_path / "alone", ALONE)
    assert first["losses"] == second["losses"]
    assert [loss for _, loss in first["losses"]] == pytest.approx([loss for _, loss in losses], rel=1e-4)
    zero, one = (load_file(tmp_path / f"weights-{rank}.safetensors") for rank in (0, 1))
    for name, weight in weights.items():
        assert torch.equal(zero[name], one[name])
        torch.testing.assert_close(zero[name], weight, atol=1e-3, rtol=1e-2)
    assert "goes on after step 4" in first["said"][0]  # what was interrupted
    assert first["said"][0].endswith("micro-batches of 1")  # the second process's lack of memory is the first one's


def test_the_stage_in_two_processes_gives_the_adapter_of_one_with_twice_the_batch(
    toy_base: Path, toy_shards: Path, tmp_path: Path
):
    """Once with a launcher, once with what the stage starts by itself."""
    (tmp_path / "settings.toml").write_text(TOML)
    command = ["-m", "pipelines.openpack.finetune", "--preset", "tiny", "--settings", str(tmp_path / "settings.toml")]
    done = launch(*command, "--base", str(toy_base), "--shards", str(toy_shards), "--out", str(tmp_path / "two"))
    assert done.stdout.count("step 2/2") == 1  # one of them tells
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.toml", "two"]

    two = load_settings(tmp_path / "settings.toml", preset="tiny").finetune
    loop = two.loop.model_copy(update={"batch_size": 4})
    finetune(toy_base, toy_shards, tmp_path / "one", two.model_copy(update={"loop": loop, "processes": 1}), str)
    finetune(toy_base, toy_shards, tmp_path / "itself", two, str)
    expected, wanted = read_adapter(tmp_path / "one"), load_file(tmp_path / "one" / "adapter_model.safetensors")
    for place in ("two", "itself"):
        made, weights = read_adapter(tmp_path / place), load_file(tmp_path / place / "adapter_model.safetensors")
        assert (made.clips, made.epochs) == (expected.clips, expected.epochs)
        assert [loss for _, loss in made.losses] == pytest.approx([loss for _, loss in expected.losses], rel=1e-4)
        for name, weight in wanted.items():
            torch.testing.assert_close(weights[name], weight, atol=1e-3, rtol=1e-2)


def test_processes_share_the_samples_of_the_base_model_and_none_is_drawn_twice():
    tiny = TinySettings(image=28, patch=14)
    loop = LoopSettings(steps=2, batch_size=2, gradient_accumulation_steps=1)
    two = PretrainSettings(model=tiny, asked=2, processes=2, loop=loop)
    one = two.model_copy(update={"processes": 1, "loop": loop.model_copy(update={"batch_size": 4})})

    def drawn(settings: PretrainSettings, rank: int) -> list[str]:
        rows = _drawn_rows(settings, DEFAULT_FORMAT.frames, rank)(1)
        return sorted(digest([row.ids, row.pixels.flatten()[::97].tolist()]) for row in rows)

    assert len(set(drawn(one, 0))) == 4
    assert sorted(drawn(two, 0) + drawn(two, 1)) == drawn(one, 0)


def summed(dies: bool = False, told: Path | None = None) -> float:
    """What a process of a group of two does: one sum over both."""
    with joined("cpu", 2) as ranks:
        if told:
            (told / str(ranks.index)).write_text(str(os.getpid()))
        if dies and not ranks.first:
            os._exit(7)
        return ranks.total(ranks.index + 1)


def test_processes_are_started_find_each_other_and_are_gone_afterwards(tmp_path: Path):
    before = dict(os.environ)
    for _ in range(2):  # and again in the same process, as another group
        with together(2, partial(summed, told=tmp_path)):
            assert summed(told=tmp_path) == 3
        assert int((tmp_path / "0").read_text()) == os.getpid()
        assert not psutil.pid_exists(int((tmp_path / "1").read_text()))
    assert dict(os.environ) == before


def refuses() -> None:
    """A user's error in the second process alone."""
    with joined("cpu", 2) as ranks:
        if not ranks.first:
            raise DataError("the shard is missing", file="a.tar", cure="Run shards again.")
        ranks.total(1)


def vanishes() -> None:
    os._exit(9)


def test_an_error_of_another_process_is_told_as_it_is():
    with pytest.raises(DataError, match=r"a\.tar: the shard is missing\. Run shards again"), together(2, refuses):
        refuses()


def test_a_process_that_dies_before_the_group_is_there_is_not_waited_for():
    with pytest.raises(SetupError, match="one of 2 processes ended with 9"), together(2, _Vanishing()):
        joined("cpu", 2).__enter__()


class _Vanishing:
    """Work that ends its process as soon as it is unpickled there, before anything is joined."""

    def __reduce__(self):
        return vanishes, ()

    def __call__(self) -> None:
        """Never called."""


def test_a_process_that_dies_ends_the_training_with_a_sentence():
    sentence = r"one of 2 processes ended with 7\. .* goes on from the last checkpoint"
    with pytest.raises(SetupError, match=sentence), together(2, partial(summed, dies=True)):
        summed()


def interrupted(told: Path) -> None:
    with together(2, partial(summed, told=told)), joined("cpu", 2):
        wait_until(lambda: (told / "1").is_file() and (told / "1").read_text())
        raise KeyboardInterrupt


def test_the_others_end_with_the_first(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path)
    assert not psutil.pid_exists(int((tmp_path / "1").read_text()))
    process = start(waits_for_ever, tmp_path)
    wait_until((tmp_path / "ready").is_file)
    other = int((tmp_path / "1").read_text())
    process.kill()
    wait_until(lambda: not psutil.pid_exists(other))


def waits_for_ever(told: Path) -> None:
    (told / "1").unlink()
    with together(2, partial(summed, told=told)), joined("cpu", 2):
        wait_until(lambda: (told / "1").is_file() and (told / "1").read_text())
        (told / "ready").touch()
        time.sleep(600)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_each_step_and_no_clip_is_seen_twice(processes: int):
    loop = LoopSettings(steps=9, batch_size=8 // processes, gradient_accumulation_steps=1)
    settings = FinetuneSettings(loop=loop, processes=processes)
    seen = [pair for step in range(5) for rank in range(processes) for pair in sample_numbers(20, settings, rank, step)]
    assert [position for position, _ in seen] == list(range(40))
    assert sorted(number for _, number in seen[:20]) == list(range(20))  # an epoch is every clip once
    alone = FinetuneSettings(loop=loop.model_copy(update={"batch_size": 8}))
    assert seen == [pair for step in range(5) for pair in sample_numbers(20, alone, 0, step)]


def test_another_number_of_processes_than_asked_for_is_refused(monkeypatch):
    with (
        pytest.raises(SetupError, match=r"1 processes train where the settings ask for 2\. Set `processes = 1`"),
        joined("cpu", 2),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SetupError, match=r"Set `processes = 2`"), joined("cpu", 1):
        pass
