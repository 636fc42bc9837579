"""Merges an adapter into its base: one model folder that answers by itself, for tools that know no adapters.

The format is that of the stage `base_model` with its weights inside: `base.json`, the model and processor as
`save_pretrained` writes them, `labels.json` and `preparation.json`; so `evaluate` and `predict` take the folder as a
base.

The base is read whole, never in 4 bits. An adapter that was trained beside 4-bit weights therefore answers as it does
with `quantization = "none"`, which differs by the rounding of the base.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from pipelines.common.console import run
from pipelines.common.errors import DataError
from pipelines.common.files import atomic_folder, digest, folder_digests, write_json
from pipelines.common.vlm.settings import Device
from pipelines.openpack.finetune import read_adapter
from pipelines.openpack.preparation import PREPARATION, read_preparation
from pipelines.openpack.pretrain import BASE, BaseModel, read_base
from pipelines.openpack.taxonomy import LABELS, Taxonomy


def merge(base: Path, adapter: Path, out: Path, device: Device = "auto") -> BaseModel:
    """Writes the merged model to `out`, whole or not at all, in the type of number that the base is stored in.

    `base` is the folder of the stage base_model, `adapter` that of the stage adapter. DataError where the adapter was
    trained on another base, SetupError where weights cannot be had.
    """
    from transformers import AutoConfig

    from pipelines.common.vlm.load import load

    base_model, trained = read_base(base), read_adapter(adapter)
    if trained.base_digest != base_model.digest:
        what = f"the adapter is of the base {trained.base_digest}, this one is {base_model.digest}"
        raise DataError(what, file=adapter, cure="Give the base that it was trained on.")
    place = base_model.place(base)
    vlm = load(place, adapter=adapter, device=device)
    whole = vlm.model.merge_and_unload()
    stored = AutoConfig.from_pretrained(place).dtype
    with atomic_folder(out) as folder:
        (whole.to(stored) if stored else whole).save_pretrained(folder)
        vlm.encoder.processor.save_pretrained(folder)
        write_json(folder / LABELS, Taxonomy.read(adapter / LABELS).as_json())
        read_preparation(adapter, "adapter").save(folder / PREPARATION)
        content = digest(folder_digests(folder))
        merged = replace(
            base_model, name=f"{base_model.name}+{trained.digest}", weights="", digest=content, losses=[], revision=None
        )
        write_json(folder / BASE, asdict(merged))
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge an adapter into its base.")
    parser.add_argument("--base", type=Path, required=True, help="folder of the stage base_model")
    parser.add_argument("--adapter", type=Path, required=True, help="folder of the stage adapter")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    merged = merge(arguments.base, arguments.adapter, arguments.out)
    print(f"{merged.name}: {merged.parameters:,} parameters in {arguments.out}")


if __name__ == "__main__":
    run(main)
