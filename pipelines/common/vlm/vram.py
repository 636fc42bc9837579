"""How much GPU memory a QLoRA training takes, part by part, from a model's config alone.

Belongs here: the estimate, GPUs and the tables. What activations take stands in `activations`, sizes of published
models in `published`. Loading, LoRA and the loop that it speaks of do not belong here; it describes them as they are in
`load`, `lora` and `train`: 4-bit language linears, the vision tower and the head in bf16, LoRA in fp32, logits for the
answer only, and no graph through a tower that is not trained.

    total = weights + 16 B · LoRA weights + batch · (kept + max(layer, logits, vision)) + dequantised weight + context

Weights are counted on the model itself, built without storage. Not measured on a GPU: what CUDA's kernels and allocator
add is the `spare` of `Estimate.fits`.
"""

from __future__ import annotations

import argparse
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from pipelines.common.console import run
from pipelines.common.vlm.activations import Step, of_clip, require_known, vision_tokens
from pipelines.common.vlm.load import KEEP_WHOLE
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.published import PUBLISHED
from pipelines.common.vlm.settings import LoraSettings, Optimiser, Quantization

GB = 10**9
# bytes that each GPU has for programs: 14.7, 39.3 and 79.1 GiB
CARDS = {"T4": 15_800_000_000, "A100 40 GB": 42_200_000_000, "H100 80 GB": 84_900_000_000}
CONTEXT = 500_000_000  # of CUDA and cuBLAS in each process: 0.3 to 0.6 GB by card and driver
NF4_BLOCK, SCALE_BLOCK = 64, 256  # weights that share a scale of one byte; scales that share one of four
ADAM = 8  # bytes a weight: two moments in fp32
MUON = 4  # one
ADAM_8BIT = 2 + 8 / 256  # two moments of one byte, and for each 256 weights two scales in fp32
LEAST_8BIT = 4096  # entries of a tensor from which bitsandbytes keeps moments in one byte
CODE_BOOKS = 2 * 256 * 4  # of these, in fp32


@dataclass(frozen=True)
class Weights:
    """What is there before the first clip, counted from a config."""

    quantised: int  # bytes of the base in 4 bits
    whole: int  # bytes of the base in bf16
    largest: int  # entries of the largest weight in 4 bits
    lora: int  # trained weights
    lora_small: int  # those of them in tensors that an 8-bit optimiser leaves in fp32
    vision: bool  # whether some of them are in the vision tower


class Parts(ABC):
    """Bytes by part, in the order in which they come to be; each field of a subclass is a part."""

    @abstractmethod
    def columns(self) -> dict[str, int]:
        """What a table shows, by its head."""

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        return {part.name: getattr(self, part.name) for part in fields(self)}  # pyright: ignore[reportArgumentType]

    def fits(self, card: int, spare: float = 0.1) -> bool:
        """Whether it fits `card` bytes with this share of them left for fragments and what no config tells."""
        return self.total <= (1 - spare) * card


@dataclass(frozen=True)
class Estimate(Parts):
    """Of a training step."""

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
    def allocated(self) -> int:
        """What `torch.cuda.max_memory_allocated()` counts: everything but the context."""
        return self.total - self.context

    def columns(self) -> dict[str, int]:
        """adapter = its weights, gradients and moments."""
        return {
            "4-bit": self.weights_4bit,
            "bf16": self.weights_bf16,
            "adapter": self.lora + self.gradients + self.optimiser,
            "kept": self.kept,
            "transient": self.transient,
            "dequantised": self.dequantised,
            "context": self.context,
        }


def count_weights(config: Any, lora: LoraSettings, quantization: Quantization = "nf4") -> Weights:
    """Counts the base and its adapter on a model without storage: the very modules that training makes.

    SetupError for a family without an estimate.
    """
    require_known(config)
    return _counted(type(config), config.to_json_string(use_diff=False), lora.model_dump_json(), quantization)


@cache  # by value: tables ask for the same model again and again, and PEFT takes its time with each
def _counted(kind: Any, sizes: str, adapter: str, quantization: Quantization) -> Weights:
    lora = LoraSettings.model_validate_json(adapter)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(kind.from_dict(json.loads(sizes)))
        quantised = _quantised(model) if quantization == "nf4" else []
        rest = sum(weight.numel() for weight in model.parameters()) - sum(quantised)
        tuned = put_lora(model, lora, gradient_checkpointing=False)
    trained = [weight.numel() for weight in tuned.parameters() if weight.requires_grad]
    return Weights(
        quantised=sum(map(_nf4_bytes, quantised)),
        whole=2 * rest,
        largest=max(quantised, default=0),
        lora=sum(trained),
        lora_small=sum(entries for entries in trained if entries < LEAST_8BIT),
        vision=lora.vision,
    )


def estimate(config: Any, weights: Weights, step: Step) -> Estimate:
    """Peak memory of a training step; `weights` are those of the same config. SetupError for an unknown family."""
    clip = of_clip(config, step, weights.vision)
    batch = step.batch_size
    # a frozen tower looks at one clip at a time, and is done before the language part keeps anything
    vision = batch * clip.vision if weights.vision else clip.vision - batch * clip.kept
    return Estimate(
        weights_4bit=weights.quantised,
        weights_bf16=weights.whole,
        lora=4 * weights.lora,
        gradients=4 * weights.lora,
        optimiser=_moments(weights, step.optimiser),
        kept=batch * (clip.kept + clip.vision_kept),
        transient=max(batch * clip.layer, batch * clip.logits, vision),
        dequantised=2 * weights.largest,
        context=CONTEXT,
    )


def _moments(weights: Weights, optimiser: Optimiser) -> int:
    if optimiser == "adamw":
        return ADAM * weights.lora
    if optimiser == "muon":
        return MUON * weights.lora
    large = weights.lora - weights.lora_small
    return ADAM * weights.lora_small + round(ADAM_8BIT * large) + (CODE_BOOKS if large else 0)


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


# --- the tables ---


def models(lora: LoraSettings) -> dict[str, Estimate]:
    """What a step of the T4 preset takes in each published model, with the tokens that its clip becomes."""
    rows = {}
    for name, published in PUBLISHED.items():
        config, step = published(), Step()
        title = f"{name.rpartition('/')[2]}, {vision_tokens(config, step):,} tokens"
        rows[title] = estimate(config, count_weights(config, lora), step)
    return rows


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


def markdown_table(rows: Mapping[str, Parts], card: int = CARDS["T4"], card_name: str = "T4") -> str:
    """The estimates in GB (10⁹ bytes), one a line; all rows must have the same columns."""
    heads = list(next(iter(rows.values())).columns())
    lines = [["", *heads, "**total**", f"fits a {card_name}"], ["---", *["---:"] * (len(heads) + 1), "---"]]
    for name, one in rows.items():
        figures = [f"{part / GB:.2f}" for part in one.columns().values()]
        lines.append([name, *figures, f"**{one.total / GB:.2f}**", "yes" if one.fits(card) else "no"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimates the GPU memory of a QLoRA training from a model's config.")
    default = next(iter(PUBLISHED))
    known = f"one of {', '.join(PUBLISHED)}, whose sizes are known here, or any model's folder or hub name"
    parser.add_argument("--config", default=default, help=f"{known}; by default {default}")
    parser.add_argument("--rank", type=int, default=LoraSettings().rank, help="of the adapter on the language part")
    arguments = parser.parse_args()
    name, lora = arguments.config, LoraSettings(rank=arguments.rank, vision=False)
    config = PUBLISHED[name]() if name in PUBLISHED else AutoConfig.from_pretrained(name)
    print(
        f"{name}\n\n{markdown_table(comparison(config, lora))}\n\nbatch 2, 8 frames\n\n{markdown_table(models(lora))}"
    )


if __name__ == "__main__":
    run(main)
