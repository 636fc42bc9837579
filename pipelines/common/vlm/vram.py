"""How much GPU memory a QLoRA training takes, part by part, from a model's config alone.

Belongs here: the estimate and its table. Loading, LoRA and the loop that it speaks of do not; it describes them as they
are in `load`, `lora` and `train`: 4-bit language linears, the vision tower and the head in bf16, LoRA in fp32, logits
for the answer only, and no graph through a tower that is not trained.

    total = weights + 16 B · LoRA weights + batch · (kept + max(layer, logits, vision)) + dequantised weight + context

Weights are counted on the model itself, built without storage. What activations take for each token and each unit of
width was counted tensor by tensor over whole steps on a CPU in bf16: small models of many shapes, and two layers of
full width. Not measured on a GPU: what CUDA's kernels and allocator add is the `spare` of `Estimate.fits`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLConfig

from pipelines.common.console import run
from pipelines.common.errors import SetupError
from pipelines.common.vlm.load import KEEP_WHOLE
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.settings import LoraSettings, Quantization

GB = 10**9
T4 = 15_800_000_000  # bytes that a T4 has for programs: 14.74 GiB
CONTEXT = 500_000_000  # of CUDA and cuBLAS in each process: 0.3 to 0.6 GB by card and driver
NF4_BLOCK, SCALE_BLOCK = 64, 256  # weights that share a scale of one byte; scales that share one of four
ADAM = 8  # bytes a weight: two moments in fp32
LOGITS = 14  # bytes an entry: bf16, its fp32 log-softmax, and two gradients of that


@dataclass(frozen=True)
class Weights:
    """What is there before the first clip, counted from a config."""

    quantised: int  # bytes of the base in 4 bits
    whole: int  # bytes of the base in bf16
    largest: int  # entries of the largest weight in 4 bits
    lora: int  # trained weights
    vision: bool  # whether some of them are in the vision tower


@dataclass(frozen=True)
class Step:
    """What goes through the model at once. Lengths of text are those of the packing prompt in Qwen2's tokens."""

    batch_size: int = 2
    frames: int = 8
    image: int = 336  # pixels a side
    instruction_tokens: int = 184  # with those of the chat
    line_tokens: int = 24  # the line before a pair of frames, and the marks around it
    answer_tokens: int = 32
    gradient_checkpointing: bool = True
    all_logits: bool = False  # True: as a plain training step makes them, at every position


@dataclass(frozen=True)
class Estimate:
    """Bytes by part, in the order in which they come to be."""

    weights_4bit: int
    weights_bf16: int
    lora: int
    gradients: int
    optimiser: int
    kept: int  # activations that backward still needs
    transient: int  # on top of them, the largest of: one layer's backward, the logits, the vision tower
    dequantised: int
    context: int

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    @property
    def allocated(self) -> int:
        """What `torch.cuda.max_memory_allocated()` counts: everything but the context."""
        return self.total - self.context

    def parts(self) -> dict[str, int]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def fits(self, card: int, spare: float = 0.1) -> bool:
        """Whether it fits `card` bytes with this share of them left for fragments and what no config tells."""
        return self.total <= (1 - spare) * card


def qwen2_vl_2b() -> Qwen2VLConfig:
    """The published sizes of Qwen/Qwen2-VL-2B-Instruct, without a look at the hub."""
    return Qwen2VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
        tie_word_embeddings=True,
    )


def count_weights(config: Any, lora: LoraSettings, quantization: Quantization = "nf4") -> Weights:
    """Counts the base and its adapter on a model without storage: the very modules that training makes."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        quantised = _quantised(model) if quantization == "nf4" else []
        rest = sum(weight.numel() for weight in model.parameters()) - sum(quantised)
        tuned = put_lora(model, lora, gradient_checkpointing=False)
    trained = sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)
    return Weights(sum(map(_nf4_bytes, quantised)), 2 * rest, max(quantised, default=0), trained, lora.vision)


def estimate(config: Any, weights: Weights, step: Step) -> Estimate:
    """Peak memory of a training step; `weights` are those of the same config. SetupError for an unknown family."""
    if config.model_type != "qwen2_vl":
        cure = "Measure it, or add its sizes to pipelines/common/vlm/vram.py."
        raise SetupError(f"no memory estimate for models of the type {config.model_type}", cure=cure)
    text_kept, layer, logits = _text(config, step)
    vision_kept, vision = _vision(config, step, weights.vision)
    if not weights.vision:
        vision -= text_kept  # a frozen tower is done before the language part keeps anything
    return Estimate(
        weights_4bit=weights.quantised,
        weights_bf16=weights.whole,
        lora=4 * weights.lora,
        gradients=4 * weights.lora,
        optimiser=ADAM * weights.lora,
        kept=step.batch_size * (text_kept + vision_kept),
        transient=step.batch_size * max(layer, logits, vision),
        dequantised=2 * weights.largest,
        context=CONTEXT,
    )


def vision_tokens(config: Any, step: Step) -> int:
    """Tokens that one clip's frames become: 72 a frame of 336×336 in Qwen2-VL, since two frames share a patch."""
    return _patches(config, step) // config.vision_config.spatial_merge_size**2


def _patches(config: Any, step: Step) -> int:
    """Patches of one clip; the processor rounds a side to whole merged patches and fills up the last pair."""
    vision = config.vision_config
    side = round(step.image / vision.patch_size / vision.spatial_merge_size) * vision.spatial_merge_size
    return math.ceil(step.frames / vision.temporal_patch_size) * side**2


def _text(config: Any, step: Step) -> tuple[int, int, int]:
    """Bytes of one clip in the language part: kept, one layer's backward, logits."""
    sizes = config.get_text_config()
    width, mlp, head = sizes.hidden_size, sizes.intermediate_size, sizes.hidden_size // sizes.num_attention_heads
    pairs = math.ceil(step.frames / config.vision_config.temporal_patch_size)
    text = step.instruction_tokens + pairs * step.line_tokens + step.answer_tokens
    tokens = vision_tokens(config, step) + text
    # of a layer for its backward: fp32 copies of what norms and adapters take in, and attention's inputs in bf16
    saved = 40 * width + 10 * mlp
    in_flight = 10 * width + 4 * mlp  # hidden states, gradients and an adapter's output while they are added up
    inputs = 2 * width if step.gradient_checkpointing else saved
    kept = tokens * (sizes.num_hidden_layers * inputs + 4 * width + 4 * head)  # and the last norm's, and the rotations
    layer = tokens * (in_flight + (saved if step.gradient_checkpointing else 0))
    return kept, layer, (tokens if step.all_logits else step.answer_tokens) * sizes.vocab_size * LOGITS


def _vision(config: Any, step: Step, trained: bool) -> tuple[int, int]:
    """Bytes of one clip in the vision tower: kept, and what is there at most beside that."""
    sizes, patches = config.vision_config, _patches(config, step)
    width, mlp = sizes.embed_dim, int(sizes.embed_dim * sizes.mlp_ratio)
    values = sizes.in_channels * sizes.temporal_patch_size * sizes.patch_size**2
    if not trained:  # pixels in fp32 and bf16; then queries and keys, which are turned in fp32
        return 0, patches * (6 * values + 36 * width)
    saved, in_flight, merger = 30 * width + 8 * mlp, 4 * width + 4 * mlp, 14 * width
    inputs = 2 * width if step.gradient_checkpointing else saved
    layer = in_flight + (saved if step.gradient_checkpointing else 0)
    return patches * (sizes.depth * inputs + merger), patches * layer


def _quantised(model: torch.nn.Module) -> list[int]:
    """Entries of each weight that `load` puts into 4 bits."""
    return [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith(tuple(KEEP_WHOLE))
    ]


def _nf4_bytes(entries: int) -> int:
    """Half a byte an entry, scales quantised once more, and the two code books of 16 and 256 values."""
    scales = math.ceil(entries / NF4_BLOCK)
    return math.ceil(entries / 2) + scales + 4 * math.ceil(scales / SCALE_BLOCK) + 4 * (16 + 256)


# --- the table ---


def comparison(config: Any, lora: LoraSettings) -> dict[str, Estimate]:
    """What the T4 preset takes, by batch and frames, and what each of its measures saves."""
    plain, usual = count_weights(config, lora), Step()
    with_vision = count_weights(config, lora.model_copy(update={"vision": True}))
    rows = {
        f"batch {batch}, {frames} frames": estimate(config, plain, replace(usual, batch_size=batch, frames=frames))
        for frames in (8, 16)
        for batch in (1, 2, 4)
    }
    others = {
        "LoRA on the vision tower too": (with_vision, usual),
        "logits at every position": (plain, replace(usual, all_logits=True)),
        "no gradient checkpointing": (plain, replace(usual, gradient_checkpointing=False)),
        "base in bf16": (count_weights(config, lora, "none"), usual),
    }
    return rows | {f"batch 2, 8 frames, {name}": estimate(config, *case) for name, case in others.items()}


def markdown_table(rows: Mapping[str, Estimate], card: int = T4, card_name: str = "T4") -> str:
    """The estimates in GB (10⁹ bytes), one a line; adapter = its weights, gradients and Adam's moments."""
    heads = ["", "4-bit", "bf16", "adapter", "kept", "transient", "dequantised", "context", "**total**"]
    lines = [[*heads, f"fits a {card_name}"], ["---", *["---:"] * 8, "---"]]
    for name, one in rows.items():
        adapter = one.lora + one.gradients + one.optimiser
        parts = one.weights_4bit, one.weights_bf16, adapter, one.kept, one.transient, one.dequantised, one.context
        figures = [f"{part / GB:.2f}" for part in parts]
        lines.append([name, *figures, f"**{one.total / GB:.2f}**", "yes" if one.fits(card) else "no"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimates the GPU memory of a QLoRA training from a model's config.")
    parser.add_argument("--config", help="a model's folder or hub name; by default Qwen2-VL-2B's published sizes")
    parser.add_argument("--rank", type=int, default=LoraSettings().rank, help="of the adapter on the language part")
    arguments = parser.parse_args()
    config = AutoConfig.from_pretrained(arguments.config) if arguments.config else qwen2_vl_2b()
    print(markdown_table(comparison(config, LoraSettings(rank=arguments.rank, vision=False))))


if __name__ == "__main__":
    run(main)
