"""Writes a few training pairs as plain files, so that a person can look at what a model is taught.

Format of `<out>/<clip_id>/`: the members of the shard's sample under their own names (`0.jpg` … `7.jpg`, `prompt.txt`,
`target.json`, `clip.json`), and `answer.json`, the text that the model learns to write.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipelines.common.console import run
from pipelines.common.files import atomic_folder
from pipelines.openpack.loader import Sample, ShardReader
from pipelines.openpack.predict import sample_answer
from pipelines.openpack.taxonomy import LABELS, Taxonomy

COUNT = 20


def pick(reader: ShardReader, count: int = COUNT) -> list[Sample]:
    """Training samples that take turns through the operations, each time the first by clip id that is left."""
    by_operation: dict[int, list[Sample]] = {}
    for index in range(len(reader)):
        sample = reader.sample(index)
        by_operation.setdefault(sample.clip.target.operation, []).append(sample)
    queues = [by_operation[op_id] for op_id in sorted(by_operation)]
    picked: list[Sample] = []
    while len(picked) < count and any(queues):
        picked += [queue.pop(0) for queue in queues if queue][: count - len(picked)]
    return sorted(picked, key=lambda sample: sample.key)


def write_samples(shards: Path, out: Path, count: int = COUNT) -> list[Sample]:
    """Replaces `out` by the picked pairs of the train split of `shards`, whole or not at all."""
    samples, taxonomy = pick(ShardReader(shards, "train"), count), Taxonomy.read(shards / LABELS)
    with atomic_folder(out) as folder:
        for sample in samples:
            place = folder / sample.key
            place.mkdir()
            for shown, jpeg in enumerate(sample.jpegs):
                (place / f"{shown}.jpg").write_bytes(jpeg)
            (place / "prompt.txt").write_text(sample.prompt, encoding="utf-8")
            (place / "target.json").write_text(json.dumps(sample.target, indent=1) + "\n", encoding="utf-8")
            (place / "clip.json").write_text(sample.clip.model_dump_json(indent=1) + "\n", encoding="utf-8")
            (place / "answer.json").write_text(sample_answer(sample, taxonomy).text() + "\n", encoding="utf-8")
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description="Write training pairs as plain files.")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("training_data_samples"))
    arguments = parser.parse_args()
    for sample in write_samples(arguments.shards, arguments.out):
        print(sample.key)


if __name__ == "__main__":
    run(main)
