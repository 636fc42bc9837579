"""Stage `adapter`: QLoRA on the base model, from shards to a plain PEFT folder.

Reads from top to bottom: load the base in 4 bits, put LoRA on it, train on the shards' train split, save. The folder
holds what `PeftModel.from_pretrained` needs, the processor, `adapter.json` (`Adapter`), `labels.json` (the `Taxonomy`
whose letters it answers with), `preparation.json` (the `Preparation` of the clips that it was trained on) and the
effective settings.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.ahead import Ahead
from pipelines.common.console import run
from pipelines.common.errors import DataError
from pipelines.common.files import atomic_folder, checkpoint_folder, digest, folder_digests, read_json, write_json
from pipelines.common.locks import output_lock
from pipelines.common.storage import local_folder
from pipelines.openpack.effective import in_effect
from pipelines.openpack.loader import ShardReader, order, read_manifest
from pipelines.openpack.model_card import model_card
from pipelines.openpack.preparation import PREPARATION, read_preparation
from pipelines.openpack.pretrain import BaseModel, read_base, recorded_model
from pipelines.openpack.settings import STAGE_VERSIONS, EvaluationSettings, FinetuneSettings
from pipelines.openpack.taxonomy import LABELS, Taxonomy

if TYPE_CHECKING:
    from pipelines.common.vlm.encode import Encoded
    from pipelines.common.vlm.features import VisionFeatures
    from pipelines.common.vlm.load import Vlm
    from pipelines.common.vlm.ranks import Ranks
    from pipelines.common.vlm.room import Plan
    from pipelines.common.vlm.settings import LoraSettings

VERSION = STAGE_VERSIONS["adapter"]
KEPT_BYTES = 2**29  # in all workers of a process, where all that a model sees fits: decoded once instead of each epoch
MOST_WORKERS = 8  # 16 clips in a quarter of a second
ADAPTER, SETTINGS, CARD = "adapter.json", "settings.json", "README.md"

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


def finetune(
    base: Path,
    shards: Path,
    out: Path,
    settings: FinetuneSettings,
    progress: Say = print,
    evaluation: EvaluationSettings | None = None,
) -> Adapter:
    """Trains the adapter and writes it to `out`; goes on from the last checkpoint of the same settings and data.

    In `settings.processes` processes alike, each with its share of every step; this one writes and tells. It starts the
    others, unless a launcher has. SetupError, before weights are read, where the GPU is missing, busy or too small,
    where the model takes no pictures of their size, or where a launcher has started another number of processes; with
    `evaluation` also where the adapter could then not be evaluated by these settings. DataError where clips are longer
    than the embedded model can count. Waits while another training writes to `out`.
    """
    from pipelines.common.vlm.ranks import started_first, together

    _require_length(base, shards)
    if evaluation:
        require_room_to_answer(base, evaluation, settings.lora, progress)
    others = partial(_train, base, shards, out, settings, _nothing)
    with output_lock(out, progress) if started_first() else nullcontext(), together(settings.processes, others):
        _train(base, shards, out, settings, progress)
    return read_adapter(out)


def _train(base: Path, shards: Path, out: Path, settings: FinetuneSettings, progress: Say) -> None:
    """One process's part of the training."""
    from pipelines.common.vlm.precision import compute_dtype, dtype_name
    from pipelines.common.vlm.ranks import joined
    from pipelines.openpack.vram import plan_of

    with joined(settings.device, settings.processes) as ranks:
        tell = progress if ranks.first else _nothing
        side = _require_room(base, shards, settings, tell)
        vlm, model = _model(base, settings)
        dtype = dtype_name(compute_dtype(vlm.device))
        tell(f"{_trained(model):,} trained parameters on {read_base(base).name}, computed in {dtype} on {vlm.device}")
        with checkpoint_folder(out, _key(base, shards, settings), keeps=ranks.first) as checkpoints:
            losses = _fit(vlm, model, base, shards, out, settings, plan_of(settings, side), checkpoints, ranks, tell)
            if ranks.first:
                _save(model, vlm, out, settings, read_base(base), shards, losses)
            ranks.wait()


def read_adapter(folder: Path) -> Adapter:
    return Adapter(**read_json(folder / ADAPTER))


def clips_a_step(settings: FinetuneSettings) -> int:
    """Of all processes together."""
    return settings.loop.batch_size * settings.loop.gradient_accumulation_steps * settings.processes


def sample_numbers(count: int, settings: FinetuneSettings, rank: int, step: int) -> list[tuple[int, int]]:
    """(position, sample number) of each clip of a step in process `rank`, of `count` samples in all.

    A step goes through the next positions of all epochs, each process through a part of them of its own: two
    processes see what one with twice the batch would see.
    """
    whole = clips_a_step(settings)
    share = whole // settings.processes
    first = step * whole + rank * share
    numbered = []
    for position in range(first, first + share):
        epoch, place = divmod(position, count)
        numbered.append((position, int(order(count, settings.loop.seed, epoch)[place])))
    return numbered


def _nothing(line: str) -> None:
    """What the other processes tell."""


def _require_length(base: Path, shards: Path) -> None:
    most, clip_format = read_base(base).frames, read_preparation(shards, "shards").clip_format
    if most is not None and clip_format.frames > most:
        what = f"its clips have {clip_format.frames} frames, and the embedded base model counts to {most}"
        cure = "Make the base model again with the [clip_format] of the clips (the stage base_model)."
        raise DataError(what, file=shards / PREPARATION, cure=cure)


def _require_room(base: Path, shards: Path, settings: FinetuneSettings, tell: Say) -> int:
    """Pixels a side that the model sees of the clips' pictures, where the training of it fits."""
    from pipelines.common.vlm.load import frame_side
    from pipelines.common.vlm.room import require_room
    from pipelines.openpack.vram import plan_of

    place, clip_format = read_base(base).place(base, weights=False), read_preparation(shards, "shards").clip_format
    side = frame_side(place, clip_format.size)
    tell(f"clips of {clip_format.told()}; the model sees {side}×{side}")
    require_room(place, plan_of(settings, side), settings.device, tell)
    return side


def require_room_to_answer(base: Path, evaluation: EvaluationSettings, lora: LoraSettings, tell: Say) -> None:
    """SetupError where an adapter with `lora` on this base cannot be evaluated on the GPU that is there."""
    from pipelines.common.vlm.room import require_room
    from pipelines.openpack.vram import answer_plan_of

    require_room(read_base(base).place(base), answer_plan_of(evaluation, lora), evaluation.device, tell)


def _model(base: Path, settings: FinetuneSettings) -> tuple[Vlm, Any]:
    """The base as it was loaded, and with LoRA on it."""
    import torch

    from pipelines.common.vlm.load import load
    from pipelines.common.vlm.lora import put_lora

    torch.manual_seed(settings.loop.seed)
    vlm = load(read_base(base).place(base), quantization=settings.quantization, device=settings.device)
    model = put_lora(
        vlm.model,
        settings.lora,
        gradient_checkpointing=settings.gradient_checkpointing,
        use_reentrant=settings.use_reentrant,
        input_require_grads=settings.input_require_grads,
    )
    return vlm, model


def _trained(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _key(base: Path, shards: Path, settings: FinetuneSettings) -> str:
    """What checkpoints belong to."""
    data = [shard["digest"] for shard in read_manifest(shards)["splits"]["train"]["shards"]]
    prepared = read_preparation(shards, "shards").digest()
    return digest([VERSION, settings.digest(), read_base(base).digest, data, prepared])


def _fit(
    vlm: Vlm,
    model: Any,
    base: Path,
    shards: Path,
    out: Path,
    settings: FinetuneSettings,
    plan: Plan,
    checkpoints: Path,
    ranks: Ranks,
    tell: Say,
) -> list[tuple[int, float]]:
    """The loop over the shards' train split, in this process's share; the loss of every step."""
    from pipelines.common.vlm.features import VisionFeatures
    from pipelines.common.vlm.room import left_to_change
    from pipelines.common.vlm.train import fit

    count = len(ShardReader(shards, "train"))
    board = out.with_name(f"{out.name}.tensorboard") / checkpoints.name if settings.loop.tensorboard else None
    place = read_base(base).place(base, weights=False)
    workers = _workers(settings, vlm.device.type == "cuda")
    maker = partial(_training_rows, place, shards, settings, ranks.index, workers)
    with Ahead(maker, workers) as rows:
        look = None
        if not settings.lora.vision:
            store = checkpoints / "features" / f"process-{ranks.index}" if settings.cache_vision else None
            look = partial(_seen_rows, VisionFeatures(model, vlm.encoder, store), count, settings, ranks.index)
        return fit(
            model,
            vlm.encoder,
            rows,
            settings.loop,
            checkpoints,
            device=vlm.device,
            progress=tell,
            ranks=ranks,
            board=board,
            when_full=left_to_change(plan),
            look=look,
        )


def _seen_rows(
    features: VisionFeatures,
    count: int,
    settings: FinetuneSettings,
    rank: int,
    step: int,
    rows: Sequence[Encoded],
) -> list[Encoded]:
    """A step's rows after a look through the frozen tower."""
    return features.fill(rows, [number for _, number in sample_numbers(count, settings, rank, step)])


def _save(
    model: Any,
    vlm: Vlm,
    out: Path,
    settings: FinetuneSettings,
    base: BaseModel,
    shards: Path,
    losses: list[tuple[int, float]],
) -> None:
    import torch

    from pipelines.common.vlm.precision import compute_dtype, dtype_name

    peak = torch.cuda.max_memory_allocated() if vlm.device.type == "cuda" else None
    manifest, taxonomy = read_manifest(shards), Taxonomy.read(shards / LABELS)
    preparation = read_preparation(shards, "shards")
    clips = len(manifest["splits"]["train"]["samples"])
    epochs = round(settings.loop.steps * clips_a_step(settings) / clips, 2)
    with atomic_folder(out) as folder:
        # PEFT would note the folder that the base was loaded from, and equal adapters would differ by their place
        model.peft_config["default"].base_model_name_or_path = base.name
        model.save_pretrained(folder, save_embedding_layers=False)  # none is trained; "auto" would look the base up
        vlm.encoder.processor.save_pretrained(folder)
        write_json(folder / LABELS, taxonomy.as_json())
        preparation.save(folder / PREPARATION)
        dtype = dtype_name(compute_dtype(vlm.device))
        card = model_card(base, settings, taxonomy, preparation, manifest, _trained(model), dtype, losses)
        (folder / CARD).write_text(card, encoding="utf-8")  # in place of PEFT's, which is a form with blanks
        weights = digest(folder_digests(folder))
        adapter = Adapter(base.name, base.digest, weights, _trained(model), clips, epochs, peak, losses)
        write_json(folder / ADAPTER, asdict(adapter))
        settings.save(folder / SETTINGS)


def _workers(settings: FinetuneSettings, on_gpu: bool) -> int:
    """Processes that make one training process's samples."""
    if settings.workers or not on_gpu:
        return settings.workers or 1
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // settings.processes))


def _kept_clips(reader: ShardReader, pixels: int | None, workers: int = 1) -> int:
    """How many decoded clips each of `workers` keeps: all where they fit, else none, since of a part of them none would
    be there when it is wanted. All clips have pictures of one size."""
    from pipelines.openpack.predict import sample_frames

    whole = len(reader) * sample_frames(reader.sample(0), pixels).nbytes
    return len(reader) if whole * workers <= KEPT_BYTES else 0


def _training_rows(
    place: str, shards: Path, settings: FinetuneSettings, rank: int, workers: int
) -> Callable[[int], list[Encoded]]:
    """Encoded samples of a step in process `rank`, augmented by seed and position; in one of its `workers`."""
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
    kept = _kept_clips(reader, pixels, workers)

    torch.set_num_threads(1)

    @lru_cache(maxsize=kept)
    def decoded(number: int) -> np.ndarray:
        return sample_frames(reader.sample(number), pixels)

    def rows(step: int) -> list[Encoded]:
        questions, answers = [], []
        for position, number in sample_numbers(len(reader), settings, rank, step):
            sample = reader.sample(number)
            frames = decoded(number) if kept else sample_frames(sample, pixels)
            rng = np.random.default_rng((settings.loop.seed, position))
            keyframes = renumber(sample.clip.keyframes, settings.augment, rng)
            answers.append(sample_answer(sample, taxonomy).text())
            frames = augment(frames, settings.augment, rng) if settings.augment.changes_pictures else frames
            questions.append(clip_question(frames, keyframes, taxonomy, sample.fps))
        return encoder.encode(questions, answers)

    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the adapter on a folder of shards.")
    parser.add_argument("--base", required=True, help="folder of the stage base_model, or the URL of a published one")
    parser.add_argument("--shards", required=True, help="folder of the stage shards, or the URL of a published one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", help="of pipelines/openpack/presets; else PRESET, else that of the base model")
    parser.add_argument("--settings", type=Path, help="a settings.toml, on top of the preset")
    arguments = parser.parse_args()
    base, shards = local_folder(arguments.base), local_folder(arguments.shards)
    chosen = {"path": arguments.settings, "preset": arguments.preset, "model": recorded_model(base)}
    made = in_effect("finetune", **chosen)
    finetune(base, shards, arguments.out, made.finetune, evaluation=made.evaluation)


if __name__ == "__main__":
    run(main)
