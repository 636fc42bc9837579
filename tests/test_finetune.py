"""The stage adapter as a process: killed and started again, it ends where an undisturbed one ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from pipelines.common.errors import SetupError
from pipelines.common.vlm.load import keep_frame_size, load
from pipelines.common.vlm.published import qwen2_vl_2b
from pipelines.common.vlm.vram import CARDS
from pipelines.openpack.finetune import SETTINGS, _kept_clips, _workers, clips_a_step, read_adapter
from pipelines.openpack.loader import ShardReader
from pipelines.openpack.predict import model_size
from pipelines.openpack.settings import FinetuneSettings, load_settings
from pipelines.openpack.vram import PRESET_CARDS, plan_of

STEPS = 8
TOML = f"""
[finetune.loop]
steps = {STEPS}
batch_size = 2
save_steps = 1
threads = 1
[finetune.lora]
rank = 4
"""


def start(base: Path, shards: Path, out: Path) -> subprocess.Popen[str]:
    settings = out.parent / "settings.toml"
    settings.write_text(TOML)
    command = [sys.executable, "-m", "pipelines.openpack.finetune", "--preset", "tiny", "--settings", str(settings)]
    command += ["--base", str(base), "--shards", str(shards), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def whole(toy_base: Path, toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "adapter"
    assert start(toy_base, toy_shards, out).wait() == 0
    return out


def test_killed_and_run_again_gives_the_same_weights_and_losses(
    whole: Path, toy_base: Path, toy_shards: Path, tmp_path
):
    out = tmp_path / "adapter"
    killed = start(toy_base, toy_shards, out)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("adapter.checkpoints/*/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not out.exists()  # nothing half-written where the adapter belongs
    again = start(toy_base, toy_shards, out)
    said, _ = again.communicate()
    assert again.returncode == 0
    assert "goes on after step" in said
    assert read_adapter(out).losses == read_adapter(whole).losses
    assert read_adapter(out).digest == read_adapter(whole).digest
    assert not list(tmp_path.glob("*.checkpoints"))


def test_the_folder_is_plain_peft_and_says_how_it_was_made(whole: Path, toy_base: Path):
    assert PeftModel.from_pretrained(load(toy_base).model, str(whole))
    assert load_file(whole / "adapter_model.safetensors")
    assert FinetuneSettings.load(whole / SETTINGS).loop.steps == STEPS
    assert len(read_adapter(whole).losses) == STEPS


def test_asking_for_a_gpu_that_is_not_there_is_an_error_and_never_the_cpu(toy_base: Path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SetupError, match="no CUDA device"):
        load(toy_base, device="cuda")


def test_a_model_that_cannot_be_had_says_what_to_do(tmp_path: Path):
    with pytest.raises(SetupError, match="a folder that holds a model, or a hub name"):
        load(tmp_path / "nothing")


def test_the_brief_s_demands_are_the_defaults_of_a_full_size_run(monkeypatch):
    monkeypatch.setenv("VLM", "Qwen/Qwen2-VL-2B-Instruct")
    made = load_settings().finetune
    loop = made.loop
    assert made.quantization == "nf4"
    assert (made.gradient_checkpointing, made.use_reentrant, made.input_require_grads, loop.use_cache) == (
        True,
        False,
        True,
        False,
    )
    assert (loop.batch_size, loop.gradient_accumulation_steps, loop.save_steps, loop.save_total_limit) == (2, 8, 50, 3)


@pytest.mark.parametrize("preset", PRESET_CARDS)
def test_every_preset_takes_the_same_step_and_fits_its_card(preset: str):
    made = load_settings(preset=preset).finetune
    t4 = load_settings(preset="t4").finetune
    assert clips_a_step(made) == clips_a_step(t4) == 16
    assert made.loop.learning_rate == t4.loop.learning_rate
    assert plan_of(made).estimate(qwen2_vl_2b()).fits(CARDS[PRESET_CARDS[preset]])


def test_a_plan_is_what_the_settings_say():
    made = load_settings(preset="h100").finetune
    plan = plan_of(made)
    assert (plan.lora, plan.quantization, plan.accumulation) == (made.lora, "none", 1)
    assert (plan.step.batch_size, plan.step.gradient_checkpointing, plan.step.optimiser) == (16, False, "adamw")


def test_settings_that_cannot_work_together_are_refused(tmp_path: Path):
    for text, reason in {
        "[finetune]\ncache_vision = true": "cache_vision needs lora.vision = false",
        "[finetune]\nuse_reentrant = true\ninput_require_grads = false": "gives no gradients",
    }.items():
        (tmp_path / "settings.toml").write_text(text)
        with pytest.raises(SetupError, match=reason):
            load_settings(tmp_path / "settings.toml", preset="t4")


def test_decoded_clips_are_kept_only_where_all_of_them_fit(toy_shards: Path, monkeypatch):
    """With a hub processor's settings, which fix no size, a clip is eight pictures as they lie in the shard."""
    reader, processor = ShardReader(toy_shards, "train"), SimpleNamespace(video_processor=Qwen2VLVideoProcessor())
    keep_frame_size(processor)
    whole = model_size(processor)
    assert whole is None
    clip = 8 * 336 * 336 * 3
    monkeypatch.setattr("pipelines.openpack.finetune.KEPT_BYTES", len(reader) * clip)
    assert _kept_clips(reader, whole) == len(reader)
    monkeypatch.setattr("pipelines.openpack.finetune.KEPT_BYTES", len(reader) * clip - 1)
    assert _kept_clips(reader, whole) == 0
    assert _kept_clips(reader, 28) == len(reader)  # the embedded model's, at its own size
    assert _kept_clips(reader, 28, workers=200) == 0  # each of them would keep them


@pytest.mark.parametrize(
    ("asked", "processes", "on_gpu", "expected"),
    [(None, 2, False, 1), (None, 1, True, 6), (None, 2, True, 3), (None, 8, True, 1), (5, 2, False, 5)],
)
def test_a_gpu_gets_as_many_workers_as_there_are_cores(asked, processes, on_gpu, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(6))
    assert _workers(FinetuneSettings(workers=asked, processes=processes), on_gpu) == expected
