"""The GPU benchmark's own code, at toy size on the CPU: no figure of it means anything here."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gpu
from pipelines.common.errors import SetupError
from pipelines.common.vlm.published import qwen2_vl_2b

CPU = torch.device("cpu")


def toy_config():
    """Qwen2-VL-2B's config with small sizes; widths are whole blocks of 4 bits."""
    config = qwen2_vl_2b()
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size = 64, 128, 1, 1000
    text.num_attention_heads, text.num_key_value_heads = 2, 1
    text.rope_parameters["mrope_section"] = [8, 4, 4]
    vision.depth, vision.embed_dim, vision.hidden_size, vision.num_heads = 1, 32, 64, 2
    vision.mlp_ratio, vision.patch_size = 2, 28
    text.layer_types = ["full_attention"]
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("model")
    gpu.write_model(out, toy_config(), CPU)
    return out


def test_every_kind_of_case_is_measured(folder: Path, monkeypatch):
    monkeypatch.setattr(gpu, "WARM", 0)
    monkeypatch.setattr(gpu, "TIMED", 1)
    cases = {case for case in gpu.CASES if (case.batch, case.frames) in ((2, 8), (1, 16))}
    measured = [gpu.train(folder, case, CPU) for case in cases]
    for one in measured:
        assert one["step_s"] > 0
        assert one["samples_per_s"] > 0
        assert one["estimated_bytes"] > 0
    tokens = {one["tokens"] for one in measured if one["case"]["frames"] == 8}
    assert tokens == {172 + 4 * 24 + 24 + 4 * 36}  # text as in Qwen2's tokens; 12×12 patches merged by four
    ratios = gpu.against_plain(measured)
    assert ratios["t4_samples_per_s_ratio"] > 0
    assert ratios["t4_peak_bytes_ratio"] is None  # a CPU has no peak


def test_a_case_that_does_not_fit_is_told_and_the_others_go_on(folder: Path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "_measure", full)
    assert gpu.train(folder, replace(gpu.Case(), batch=8), CPU)["out_of_memory"]


def test_answers_are_timed(folder: Path, monkeypatch):
    monkeypatch.setattr(gpu, "WARM", 0)
    monkeypatch.setattr(gpu, "TIMED", 1)
    (one,) = gpu.answering(folder, CPU, clips=(1,))
    assert one["clips"] == 1
    assert one["seconds"] > 0


def test_without_a_gpu_it_ends_with_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match="no CUDA device is to be seen"):
        gpu.main()
