"""Stage `adapter`: QLoRA on the base model, from shards to a plain PEFT folder.

Reads from top to bottom: load the base in 4 bits, put LoRA on it, train on the shards' train split, save. The folder
holds what `PeftModel.from_pretrained` needs, the processor, `adapter.json` (`Adapter`), `labels.json` (the `Taxonomy`
whose letters it answers with) and the effective settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.ahead import Ahead
from pipelines.common.console import run
from pipelines.common.files import atomic_folder, digest, folder_digests, read_json, write_json
from pipelines.common.storage import local_folder
from pipelines.openpack.loader import ShardReader, order, read_manifest
from pipelines.openpack.pretrain import BaseModel, read_base
from pipelines.openpack.settings import STAGE_VERSIONS, FinetuneSettings, load_settings
from pipelines.openpack.taxonomy import LABELS, Taxonomy

if TYPE_CHECKING:
    from pipelines.common.vlm.encode import Encoded

VERSION = STAGE_VERSIONS["adapter"]
ADAPTER, SETTINGS = "adapter.json", "settings.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Adapter:
    """What is known of a trained adapter; `digest` is of its weights."""

    base: str
    base_digest: str  # an adapter answers nonsense on any other weights
    digest: str
    trained_parameters: int
    clips: int
    epochs: float
    peak_bytes: int | None  # of GPU memory; null on a CPU
    losses: list[tuple[int, float]]


def finetune(base: Path, shards: Path, out: Path, settings: FinetuneSettings, progress: Say = print) -> Adapter:
    """Trains the adapter and writes it to `out`; goes on from the last checkpoint of the same settings and data."""
    import torch

    from pipelines.common.vlm.load import load
    from pipelines.common.vlm.lora import put_lora
    from pipelines.common.vlm.train import checkpoint_folder, fit

    base_model, manifest = read_base(base), read_manifest(shards)
    place = base_model.place(base)
    torch.manual_seed(settings.loop.seed)
    vlm = load(place, quantization=settings.quantization, device=settings.device)
    model = put_lora(vlm.model, settings.lora, gradient_checkpointing=settings.gradient_checkpointing)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    progress(f"{trained:,} trained parameters on {base_model.name}, {len(ShardReader(shards, 'train'))} clips")
    data = [shard["digest"] for shard in manifest["splits"]["train"]["shards"]]
    key = digest([VERSION, settings.digest(), base_model.digest, data])
    maker = partial(_training_rows, place, shards, settings)
    with Ahead(maker) as rows, checkpoint_folder(out, key) as checkpoints:
        losses = fit(model, vlm.encoder, rows, settings.loop, checkpoints, device=vlm.device, progress=progress)
        taxonomy = Taxonomy.read(shards / LABELS)
        return _save(model, vlm, out, settings, base_model, taxonomy, len(ShardReader(shards, "train")), losses)


def read_adapter(folder: Path) -> Adapter:
    return Adapter(**read_json(folder / ADAPTER))


def _save(
    model: Any,
    vlm: Any,
    out: Path,
    settings: FinetuneSettings,
    base: BaseModel,
    taxonomy: Taxonomy,
    clips: int,
    losses: list[tuple[int, float]],
) -> Adapter:
    import torch

    peak = torch.cuda.max_memory_allocated() if vlm.device.type == "cuda" else None
    seen = settings.loop.steps * settings.loop.batch_size * settings.loop.gradient_accumulation_steps
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    with atomic_folder(out) as folder:
        # PEFT would note the folder that the base was loaded from, and equal adapters would differ by their place
        model.peft_config["default"].base_model_name_or_path = base.name
        model.save_pretrained(folder, save_embedding_layers=False)  # none is trained; "auto" would look the base up
        vlm.encoder.processor.save_pretrained(folder)
        write_json(folder / LABELS, taxonomy.as_json())
        weights = digest(folder_digests(folder))
        adapter = Adapter(base.name, base.digest, weights, trained, clips, round(seen / clips, 2), peak, losses)
        write_json(folder / ADAPTER, asdict(adapter))
        settings.save(folder / SETTINGS)
    return adapter


def _training_rows(place: str, shards: Path, settings: FinetuneSettings) -> Callable[[int], list[Encoded]]:
    """Encoded samples of a step: the shards' own order by seed and epoch, augmented by seed and position."""
    import numpy as np
    import torch
    from transformers import AutoProcessor

    from pipelines.common.vlm.augment import augment, renumber
    from pipelines.common.vlm.encode import Encoder
    from pipelines.common.vlm.load import keep_frame_size
    from pipelines.openpack.predict import clip_question, model_size, sample_answer, sample_frames

    processor = AutoProcessor.from_pretrained(place)
    keep_frame_size(processor)
    encoder, reader = Encoder(processor), ShardReader(shards, "train")
    pixels, taxonomy = model_size(processor), Taxonomy.read(shards / LABELS)
    size, seed = settings.loop.batch_size * settings.loop.gradient_accumulation_steps, settings.loop.seed

    torch.set_num_threads(1)

    def rows(step: int) -> list[Encoded]:
        questions, answers = [], []
        for position in range(step * size, (step + 1) * size):
            epoch, place_in_epoch = divmod(position, len(reader))
            sample = reader.sample(int(order(len(reader), seed, epoch)[place_in_epoch]))
            rng = np.random.default_rng((seed, position))
            keyframes = renumber(sample.clip.keyframes, settings.augment, rng)
            moved = dict(zip(sample.clip.bounds, keyframes.bounds, strict=True))
            answer = sample_answer(sample, taxonomy)
            answers.append(replace(answer, start=moved[answer.start], end=moved[answer.end]).text())
            frames = augment(sample_frames(sample, pixels), settings.augment, rng)
            questions.append(clip_question(frames, keyframes, taxonomy))
        return encoder.encode(questions, answers)

    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the adapter on a folder of shards.")
    parser.add_argument("--base", required=True, help="folder of the stage base_model, or the URL of a published one")
    parser.add_argument("--shards", required=True, help="folder of the stage shards, or the URL of a published one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", help="settings of pipelines/openpack/presets; else as VLM asks")
    parser.add_argument("--settings", type=Path, help="a settings.toml, on top of the preset")
    arguments = parser.parse_args()
    settings = load_settings(arguments.settings, preset=arguments.preset).finetune
    finetune(local_folder(arguments.base), local_folder(arguments.shards), arguments.out, settings)


if __name__ == "__main__":
    run(main)
