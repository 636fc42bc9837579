"""Two processes that accelerate starts train what one with twice the batch trains; here on the CPU, over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_training import train
from safetensors.torch import load_file

from pipelines.common.errors import SetupError
from pipelines.common.files import read_json
from pipelines.common.vlm.ranks import ALONE, joined
from pipelines.common.vlm.settings import LoopSettings
from pipelines.openpack.finetune import finetune, read_adapter, sample_numbers
from pipelines.openpack.settings import FinetuneSettings, load_settings

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
    (tmp_path / "settings.toml").write_text(TOML)
    command = ["-m", "pipelines.openpack.finetune", "--preset", "tiny", "--settings", str(tmp_path / "settings.toml")]
    done = launch(*command, "--base", str(toy_base), "--shards", str(toy_shards), "--out", str(tmp_path / "two"))
    assert done.stdout.count("step 2/2") == 1  # one of them tells
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.toml", "two"]

    two = load_settings(tmp_path / "settings.toml", preset="tiny").finetune
    loop = two.loop.model_copy(update={"batch_size": 4})
    finetune(toy_base, toy_shards, tmp_path / "one", two.model_copy(update={"loop": loop, "processes": 1}), str)
    made, expected = read_adapter(tmp_path / "two"), read_adapter(tmp_path / "one")
    assert (made.clips, made.epochs) == (expected.clips, expected.epochs)
    assert [loss for _, loss in made.losses] == pytest.approx([loss for _, loss in expected.losses], rel=1e-4)
    weights, wanted = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    for name, weight in wanted.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-3, rtol=1e-2)


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
        pytest.raises(SetupError, match=r"1 processes train where .* ask for 2\. .*--num_processes 2"),
        joined("cpu", 2),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SetupError, match=r"Set `\[finetune\] processes = 2`"), joined("cpu", 1):
        pass
