"""What each measure of a training step is worth in time: the same step without it, on a CPU and a small model.

Belongs here: the two sides, run in turns. Memory is the estimate's to say (`pipelines.common.vlm.vram`), and a model of
full size is measured on a GPU (`bench.gpu`), whose cases these are. The model has Qwen2-VL's vocabulary and picture
size and a sixth of its width, so the share of the vocabulary is larger here.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLConfig

from bench.gpu import Case, train, write_model

ROUNDS = 3
USUAL = Case()
WITHOUT = {
    "logits_of_answers_only": Case(logits="all"),
    "no_graph_through_the_tower": Case(tower="inside"),
}
WITH = {
    "kept_vision_features": Case(tower="kept"),
    "adamw_8bit": Case(optimiser="adamw_8bit"),
    "no_gradient_checkpointing": Case(checkpointing=False),
}


NAMES = (*WITHOUT, *WITH)


def run(name: str) -> dict[str, Any]:
    """Seconds a step with the measure of this name, and without it."""
    seconds = _seconds()
    sides = ("usual", name) if name in WITHOUT else (name, "usual")
    ours, other = (round(seconds[side], 3) for side in sides)
    return {"ours": ours, "other": other, "unit": "s", "ratio": round(other / ours, 2)}


@cache
def _seconds() -> dict[str, float]:
    """Seconds a step of each case, best of three."""
    device, threads = torch.device("cpu"), torch.get_num_threads()
    torch.set_num_threads(1)
    cases = {"usual": USUAL, **WITHOUT, **WITH}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), _small(), device)
        for _ in range(ROUNDS):
            for name, case in cases.items():
                seconds[name].append(train(Path(folder), case, device)["step_s"])
    torch.set_num_threads(threads)
    return {name: min(times) for name, times in seconds.items()}


def _small() -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 256,
            "intermediate_size": 1536,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        vision_config={"depth": 4, "embed_dim": 256, "hidden_size": 256, "num_heads": 4, "mlp_ratio": 4},
        tie_word_embeddings=True,
    )
