"""The README.md of an adapter: what it is for, what it was trained on and how, and where its figures stand.

It says nothing of when, where or how fast, so that equal trainings give equal folders.
"""

from __future__ import annotations

from typing import Any

from pipelines.openpack.preparation import Preparation
from pipelines.openpack.pretrain import BaseModel
from pipelines.openpack.settings import FinetuneSettings
from pipelines.openpack.taxonomy import Taxonomy

_CARD = """---
library_name: peft
pipeline_tag: video-text-to-text
tags: [lora, packaging, openpack]
---

# LoRA adapter: packing operations on {base}

Shown {shown} frames of {length:g} seconds of video in {pairs} pairs, each with its true frame numbers, the model
answers with JSON: which packing operation is done in each of the stretches that the pairs stand for, and which one
follows the last. Frames of {side}×{side} pixels count at {fps} a second, stretches are half-open; letters stand for
operations as in `labels.json`.

It is for the weights of `{base}` with the digest {base_digest} and answers nonsense on others.

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({weights})
model = PeftModel.from_pretrained(base, "<this folder>")
processor = AutoProcessor.from_pretrained("<this folder>")
```

## Data

{clips} training clips of {sessions} sessions of {persons} persons. Where they come from:

{data}

| operation | letter | training clips |
|---|---|---:|
{operations}

## Training

QLoRA in {processes} process(es): {steps} steps of {step_clips} clips, {epochs:.2f} passes over the data. {trained:,}
weights were trained, LoRA of rank {rank} on the language part{vision}; the base was in {bits}, products in
{dtype}. The mean loss a token of the last {last} steps was {loss:.4f}. All settings are in `settings.json`, the loss of
every step in `adapter.json`.

## Figures

None stand here, since an adapter is written before it is scored. The stage evaluation scores it on the test clips of
the same shards, beside the base and baselines that see no picture, and writes `report.json` and `results.json`; they
name the adapter by the digest that `adapter.json` gives. Figures on drawn sessions (source `simulated`) say nothing
about real packing lines.

## Limits

{shown} frames of {length:g} seconds; operations of the table above; workplaces and cameras like those of its data. The
licence of the data applies to what is learned from it: OpenPack is CC BY-NC-SA 4.0, its RGB videos for academic
research only.
"""


def model_card(
    base: BaseModel,
    settings: FinetuneSettings,
    taxonomy: Taxonomy,
    preparation: Preparation,
    manifest: dict[str, Any],
    trained: int,
    dtype: str,
    losses: list[tuple[int, float]],
) -> str:
    """Markdown, without blanks; `manifest` is that of the shards, `trained` the number of trained weights, `dtype` the
    type that products were computed in."""
    loop, split = settings.loop, manifest["splits"]["train"]
    clips = len(split["samples"])
    step_clips = loop.batch_size * loop.gradient_accumulation_steps * settings.processes
    recent = [loss for _, loss in losses[-loop.save_steps :]]
    named = [f'"{base.weights or "<the folder of the stage base_model>"}"']
    named += [f'revision="{base.revision}"'] if base.revision else []
    return _CARD.format(
        shown=2 * preparation.keyframes.anchors,
        pairs=preparation.keyframes.anchors,
        length=preparation.clip_format.seconds,
        fps=preparation.clip_format.fps,
        side=preparation.clip_format.size,
        base=base.name,
        base_digest=base.digest,
        weights=", ".join(named),
        clips=clips,
        sessions=len(split["sessions"]),
        persons=len(set(split["persons"].values())),
        data="\n".join(_origin(one) for one in manifest["data"]),
        operations="\n".join(
            f"| {one.name} | {one.code} | {split['operations']['native'].get(one.name, 0)} |"
            for one in taxonomy.operations
        ),
        processes=settings.processes,
        steps=loop.steps,
        step_clips=step_clips,
        epochs=loop.steps * step_clips / clips,
        trained=trained,
        dtype=dtype,
        rank=settings.lora.rank,
        vision=" and the vision tower" if settings.lora.vision else ", the vision tower as it was",
        bits="4 bits (NF4)" if settings.quantization == "nf4" else "its own precision",
        last=len(recent),
        loss=sum(recent) / len(recent),
    )


def _origin(data: dict[str, Any]) -> str:
    return (
        f"- source `{data['source']}`, view `{data['view']}`: {data['sessions']} sessions with {data['operations']} "
        f"operations, {data['seconds'] / 60:.0f} minutes, of all splits"
    )
