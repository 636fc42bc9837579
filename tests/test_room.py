"""A training that does not fit its GPU is refused before weights are read, with its parts and what to change."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from pipelines.common.errors import SetupError
from pipelines.common.vlm.activations import Step
from pipelines.common.vlm.published import PUBLISHED, qwen2_vl_2b
from pipelines.common.vlm.room import Card, Plan, left_to_change, refuse, require_room
from pipelines.common.vlm.settings import LoraSettings
from pipelines.common.vlm.vram import CARDS, GB

T4 = CARDS["T4"]
CONFIG = qwen2_vl_2b()
T4_PLAN = Plan(LoraSettings(vision=False), "nf4", Step(batch_size=2), accumulation=8)


def said(plan: Plan, free: float, total: float, config: Any = CONFIG) -> list[str]:
    lines: list[str] = []
    refuse(config, plan, Card("Tesla T4", round(free), round(total)), lines.append)
    return lines


def test_what_fits_is_let_through_and_told():
    assert said(T4_PLAN, T4, T4) == [
        f"the training: {T4_PLAN.estimate(CONFIG).total / GB:.1f} GB estimated, 15.8 GB free on Tesla T4"
    ]


def test_a_busy_gpu_is_told_from_one_that_is_too_small():
    with pytest.raises(SetupError, match=r"the GPU is busy: .* 2\.0 of 15\.8 GB are free[\s\S]*nvidia-smi"):
        said(T4_PLAN, 2 * GB, T4)
    with pytest.raises(SetupError, match="the GPU is too small"):
        said(T4_PLAN, 2 * GB, 2 * GB)


def test_the_refusal_shows_every_part():
    with pytest.raises(SetupError) as error:
        said(T4_PLAN, 2 * GB, 2 * GB)
    assert "| 4-bit | bf16 | adapter | kept | transient | dequantised | context | **total** |" in str(error.value)
    assert "| the training | 0.68 |" in str(error.value)


@pytest.mark.parametrize(
    ("plan", "gigabytes", "cure"),
    [
        (Plan(LoraSettings(vision=False), "nf4", Step(batch_size=16), 1), 6, "batch_size = 1, gradient_accumulation"),
        (
            Plan(LoraSettings(vision=False), "none", Step(8, gradient_checkpointing=False), 2),
            12,
            "checkpointing = true",
        ),
        (Plan(LoraSettings(vision=False), "none", Step(batch_size=1), 16), 5.5, 'quantization = "nf4"'),
    ],
)
def test_what_to_change_is_what_makes_it_fit(plan: Plan, gigabytes: float, cure: str):
    with pytest.raises(SetupError) as error:
        said(plan, gigabytes * GB, gigabytes * GB)
    assert cure in error.value.cure
    assert "accumulation_steps = 16`" in error.value.cure or plan.step.batch_size == 1 or "batch" not in cure


def test_where_nothing_helps_it_says_so():
    with pytest.raises(SetupError, match="take a smaller model or a larger GPU"):
        said(T4_PLAN, 1.5 * GB, 1.5 * GB)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_fits_a_t4_with_its_preset_and_not_one_of_half_its_need(name: str):
    config = PUBLISHED[name]()
    (line,) = said(T4_PLAN, T4, T4, config)
    total = T4_PLAN.estimate(config).total
    assert line.startswith(f"the training: {total / GB:.1f} GB estimated")
    with pytest.raises(SetupError, match="the GPU is too small"):
        said(T4_PLAN, total / 2, total / 2, config)


def test_where_a_larger_model_does_not_fit_what_is_said_makes_it_fit():
    config, plan = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"](), replace(T4_PLAN, quantization="none")
    with pytest.raises(SetupError) as error:
        said(plan, T4, T4, config)
    assert 'quantization = "nf4"' in error.value.cure
    assert said(replace(plan, quantization="nf4", step=Step(batch_size=1)), T4, T4, config)


def test_a_family_without_known_sizes_is_refused_and_says_so():
    with pytest.raises(SetupError, match="no memory estimate for models of the type qwen2"):
        said(T4_PLAN, T4, T4, Qwen2Config())


def test_out_of_memory_with_a_single_clip_names_what_is_not_set_yet():
    assert left_to_change(replace(T4_PLAN, step=Step(batch_size=1, optimiser="adamw_8bit"))) == (
        "No setting is left: take a smaller model or a larger GPU."
    )
    everything = Plan(LoraSettings(vision=True), "none", Step(batch_size=2, gradient_checkpointing=False), 8)
    assert left_to_change(everything) == (
        'Set `[finetune] gradient_checkpointing = true`, then `[finetune] quantization = "nf4"`, then '
        '`[finetune.loop] optimiser = "adamw_8bit"`, then `[finetune.lora] vision = false`, or take a smaller model or '
        "a larger GPU."
    )


def test_the_gpu_is_asked_before_weights_are_read_and_a_cpu_is_not(tmp_path, monkeypatch):
    require_room("nothing of this name", T4_PLAN, "cpu", print)
    CONFIG.save_pretrained(tmp_path)  # and no weights
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GB, 16 * GB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(SetupError, match="the GPU is busy"):
        require_room(tmp_path, T4_PLAN, "cuda", print)
