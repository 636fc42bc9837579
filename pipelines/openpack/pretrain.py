"""Stage `base_model`: the model that is tuned later, either made here (`tiny`) or named.

The embedded model is pre-trained on the general drawn-video task of `common.vlm.general_task`, which knows no packing
operation. For any other name the stage writes down which weights are meant and how large they are; they stay where
they are. Format of the folder: `base.json` (`BaseModel`), and for `tiny` the model and processor as
`save_pretrained` writes them, with the effective settings in `settings.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.common.ahead import Ahead
from pipelines.common.clip_format import DEFAULT_FORMAT, ClipFormat
from pipelines.common.console import run
from pipelines.common.errors import SetupError
from pipelines.common.files import atomic_folder, checkpoint_folder, digest, folder_digests, read_json, write_json
from pipelines.common.locks import output_lock
from pipelines.openpack.effective import TINY, Model, in_effect
from pipelines.openpack.settings import STAGE_VERSIONS, PretrainSettings

if TYPE_CHECKING:
    from pipelines.common.vlm.encode import Encoded

VERSION = STAGE_VERSIONS["base_model"]
BASE, SETTINGS = "base.json", "settings.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class BaseModel:
    """Which weights the adapter is for. `weights` is a hub name or a folder; empty means this folder itself. `digest`
    is of the model's files: see `common.vlm.pinned` for a named one."""

    name: str
    weights: str
    digest: str
    parameters: int
    losses: list[tuple[int, float]]
    frames: int | None = None  # of the longest clip that the embedded model can count; others count as they like

    revision: str | None = None  # of a hub name: the commit that is meant, whatever the hub has by now

    def place(self, folder: Path, *, weights: bool = True) -> str:
        """The folder to load from, `folder` being that of this record; a commit of the hub is downloaded where it is
        not cached, without `weights` its small files alone.

        DataError where the weights in a folder have changed since; SetupError where they cannot be had.
        """
        from pipelines.common.vlm.pinned import fetch, require_unchanged

        if not self.weights:
            return str(folder)
        if self.revision:
            return str(fetch(self.weights, self.revision, weights=weights))
        if not Path(self.weights).is_dir():
            cure = "Put the model back there; or run the stage base_model again, which writes down a hub name's commit."
            raise SetupError("no folder here, and no commit is written down", file=self.weights, cure=cure)
        if weights:
            require_unchanged(Path(self.weights), self.digest)
        return self.weights


def make_base(
    vlm: str,
    out: Path,
    settings: PretrainSettings,
    progress: Say = print,
    *,
    clip_format: ClipFormat = DEFAULT_FORMAT,
) -> BaseModel:
    """Makes or names the base model and writes it to `out`, whole or not at all.

    The embedded model is made for clips of that format. SetupError where they are too short for its task, and where a
    named model's configuration cannot be had. Waits while another process writes there.
    """
    from pipelines.common.vlm.ranks import started_first

    with output_lock(out, progress) if started_first() else nullcontext():
        base = _train_tiny(out, settings, clip_format.frames, progress) if vlm == TINY else _named(vlm, out, progress)
    progress(f"base model {base.name}: {base.parameters:,} parameters")
    return base


def read_base(folder: Path) -> BaseModel:
    return BaseModel(**read_json(folder / BASE))


def recorded_model(folder: Path) -> Model:
    """The model that settings are for, by the record of the base model that is read: it goes before VLM."""
    return Model(read_base(folder).name, f"{folder / BASE} says so")


def _named(vlm: str, out: Path, progress: Say) -> BaseModel:
    """A model from the hub or a folder, with its commit and the digest of its files. Of the hub, configuration and
    tokenizer are read here; weights are downloaded where they are used."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    from pipelines.common.vlm.load import read_family
    from pipelines.common.vlm.pinned import fetch, folder_digest, hub_digest, pin

    local = Path(vlm).is_dir()
    revision = None if local else pin(vlm, progress)
    place = fetch(vlm, revision, weights=False) if revision else Path(vlm).resolve()
    read_family(place)  # first, since what has no adapter may not be known to transformers either
    config = AutoConfig.from_pretrained(str(place))
    with init_empty_weights():
        parameters = AutoModelForImageTextToText.from_config(config).num_parameters()
    content = hub_digest(vlm, revision) if revision else folder_digest(place)
    base = BaseModel(vlm, str(place) if local else vlm, content, parameters, [], revision=revision)
    with atomic_folder(out) as folder:
        write_json(folder / BASE, asdict(base))
    return base


def _train_tiny(out: Path, settings: PretrainSettings, frames: int, progress: Say) -> BaseModel:
    from pipelines.common.vlm.general_task import SEGMENTS, SHORTEST
    from pipelines.common.vlm.ranks import together

    if frames < SEGMENTS * SHORTEST:
        what = f"the embedded model learns on clips of {SEGMENTS * SHORTEST} frames and more, these have {frames}"
        raise SetupError(what, cure="Set [clip_format] fps or seconds higher, or VLM to a model that is only named.")
    with together(settings.processes, partial(_train, out, settings, frames, _nothing)):
        _train(out, settings, frames, progress)
    return read_base(out)


def _nothing(line: str) -> None:
    """What the other processes tell."""


def _train(out: Path, settings: PretrainSettings, frames: int, progress: Say) -> None:
    """One process's part of the training; the first one writes."""
    import torch

    from pipelines.common.vlm import tiny
    from pipelines.common.vlm.encode import Encoder
    from pipelines.common.vlm.load import linear_patches
    from pipelines.common.vlm.ranks import joined
    from pipelines.common.vlm.train import fit

    torch.manual_seed(settings.loop.seed)
    processor = tiny.processor(_phrases(), settings.model, frames)
    model = linear_patches(tiny.model(processor.tokenizer, settings.model))
    key = digest([VERSION, settings.digest(), frames])
    with (
        joined("cpu", settings.processes) as ranks,
        Ahead(partial(_drawn_rows, settings, frames, ranks.index)) as rows,
        checkpoint_folder(out, key, keeps=ranks.first) as checkpoints,
    ):
        cpu = torch.device("cpu")
        losses = fit(
            model, Encoder(processor), rows, settings.loop, checkpoints, device=cpu, progress=progress, ranks=ranks
        )
        if ranks.first:
            with atomic_folder(out) as folder:
                model.save_pretrained(folder)
                processor.save_pretrained(folder)
                base = BaseModel(TINY, "", digest(folder_digests(folder)), model.num_parameters(), losses, frames)
                write_json(folder / BASE, asdict(base))
                settings.save(folder / SETTINGS)
        ranks.wait()


def _phrases() -> tuple[str, ...]:
    """What the embedded model's tokenizer holds as single tokens.

    The packing question is among them and never trained on here: its embedding is still random when packing begins.
    """
    from pipelines.common.vlm import dialogue, general_task, tiny
    from pipelines.openpack.prompt import ASKED, FORM, instruction
    from pipelines.openpack.taxonomy import OPENPACK

    return (
        *dialogue.FRAME_PHRASES,
        *dialogue.ANSWER_PHRASES,
        *tiny.CHAT_PHRASES,
        *general_task.QUESTIONS.values(),
        general_task.TELL,
        instruction(OPENPACK),
        ASKED,  # other names than OpenPack's are spelled between these two
        FORM,
    )


def _drawn_rows(settings: PretrainSettings, frames: int, rank: int) -> Callable[[int], list[Encoded]]:
    """Process `rank`'s samples of each step: single pairs to be told about, and clips that are asked about."""
    import torch

    from pipelines.common.vlm import tiny
    from pipelines.common.vlm.encode import Encoder
    from pipelines.common.vlm.general_task import ask, tell

    encoder = Encoder(tiny.processor(_phrases(), settings.model, frames))
    step_size = settings.loop.batch_size * settings.loop.gradient_accumulation_steps * settings.processes
    mine = slice(rank, None, settings.processes)

    torch.set_num_threads(1)

    def rows(step: int) -> list[Encoded]:
        seeds = range(step * step_size, (step + 1) * step_size)
        asked = [ask(seed, frames) for seed in seeds[: settings.asked][mine]]
        told = (tell(seed, frames) for seed in seeds[settings.asked :][mine])
        return encoder.encode(*zip(*asked, *told, strict=True))

    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded base model, or name another one.")
    parser.add_argument("--vlm", help="`tiny`, a hub name or a folder; else VLM, else `tiny`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", type=Path, help="a settings.toml")
    arguments = parser.parse_args()
    model = Model(arguments.vlm, f"--vlm {arguments.vlm}") if arguments.vlm else Model.from_env()
    settings = in_effect("pretrain", "clip_format", path=arguments.settings, model=model)
    make_base(model.name, arguments.out, settings.pretrain, clip_format=settings.clip_format)


if __name__ == "__main__":
    run(main)
