"""Which settings are in effect, and why: the one order in which flags, variables and files are looked at.

Belongs here: that order, and how it is told. The settings themselves are in `settings`, what a layer is in
`common.layers`. Each step takes the first that is there:

    the model     the record of the base model that is read (base.json), `--vlm`, VLM, the embedded one
    the preset    `--preset`, PRESET, that of the model: `tiny` for the embedded one, `t4` for a named one
    the file      `--settings`, SETTINGS_FILE, `settings.toml` in the working directory, none
    a value       the file, the preset, the default in `settings`

A preset is for the embedded model (`tiny`) or for named ones (all others). Where one is asked for that is not for the
model at hand, that is a SetupError: the embedded model's rank and optimiser make nothing of a full-size one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.common.errors import SetupError
from pipelines.common.layers import Layer, Layered, combine
from pipelines.common.machine import Gpu, gpus
from pipelines.openpack.settings import PRESETS, AllSettings

TINY = "tiny"  # the embedded model, and its preset
NAMED = "t4"  # the preset of every named model, unless another one is asked for

Say = Callable[[str], None]

to_stderr: Say = partial(print, file=sys.stderr)  # of commands whose answer goes to stdout


@dataclass(frozen=True)
class Model:
    """The model that settings are for: `tiny`, a hub name or a folder, and who says so."""

    name: str
    said_by: str

    @property
    def embedded(self) -> bool:
        return self.name == TINY

    @classmethod
    def from_env(cls) -> Model:
        name = os.environ.get("VLM")
        return cls(name, f"VLM={name}") if name else cls(TINY, "VLM is not set")


@dataclass(frozen=True)
class Effective:
    """Settings in effect, with the reasons for preset and file."""

    layered: Layered[AllSettings]
    model: Model
    preset: str
    preset_by: str
    file: Path | None
    file_by: str

    @property
    def settings(self) -> AllSettings:
        return self.layered.settings

    def lines(self, *sections: str) -> list[str]:
        """For a person: preset and file with their reasons, then what differs from the defaults in `sections`, or in
        all without any, and where it came from."""
        file = f"{self.file} ({self.file_by})" if self.file else self.file_by
        return [f"settings: preset {self.preset} ({self.preset_by}), file {file}", *changes(self.layered, sections)]


def effective(path: Path | None = None, preset: str | None = None, model: Model | None = None) -> Effective:
    """The settings in effect; `path` and `preset` are what flags say, `model` is the one at hand.

    Without a `model` VLM decides, and no preset is refused. SetupError for a preset that there is not or that is not
    for `model`, and for a file that is named and missing, or has an unknown name or a wrong value.
    """
    used = model or Model.from_env()
    chosen, chosen_by = _preset(preset, used)
    known = ", ".join(sorted(one.stem for one in PRESETS.glob("*.toml")))
    layers = [Layer.read(f"preset {chosen}", PRESETS / f"{chosen}.toml", f"The presets are {known}.")]
    if model and (chosen == TINY) != model.embedded:
        raise _not_for(model, chosen, chosen_by)
    file, file_by = _file(path)
    if file:
        layers.append(Layer.read(str(file), file, "Write it, or do not name it (--settings, SETTINGS_FILE)."))
    return Effective(combine(AllSettings, layers), used, chosen, chosen_by, file, file_by)


def changes(layered: Layered[AllSettings], sections: Sequence[str]) -> list[str]:
    """A line for each layer that changes something in `sections`, or that all is as by default."""
    lines = [f"    {layer}: {values}" for layer, values in layered.changed(sections)]
    return lines or [f"    {', '.join(sections) or 'all sections'}: the defaults"]


def in_effect(
    *sections: str, path: Path | None = None, preset: str | None = None, model: Model | None = None, say: Say = print
) -> AllSettings:
    """`effective` for a command: says what concerns its `sections` before anything starts."""
    made = effective(path, preset, model)
    for line in made.lines(*sections):
        say(line)
    return made.settings


def fitting_preset(found: list[Gpu]) -> str:
    """Of the presets for named models the one whose card is nearest below the GPUs of this machine."""
    least = min(gpu.bytes for gpu in found)
    for preset, card in (("h100", 79e9), ("a100", 39e9)):
        if least >= card:
            return preset
    return "t4x2" if len(found) > 1 else NAMED


def _preset(flag: str | None, model: Model) -> tuple[str, str]:
    variable = os.environ.get("PRESET")
    if flag:
        return flag, "--preset" + (f", which goes before PRESET={variable}" if variable not in (None, "", flag) else "")
    if variable:
        return variable, f"PRESET={variable}"
    if model.embedded:
        return TINY, f"that of the embedded model; {model.said_by}"
    return NAMED, f"the default for {model.name}; {model.said_by}; {_advice()}"


def _advice() -> str:
    found = gpus()
    if not found:
        return "no GPU is to be seen here. Others: --preset or PRESET"
    fits = fitting_preset(found)
    card = f"{len(found)} × {found[0]}" if len(found) > 1 else str(found[0])
    if fits == NAMED:
        return f"this machine has {card}"
    return f"THIS MACHINE HAS {card}, for which {fits} is made: --preset {fits} or PRESET={fits}"


def _not_for(model: Model, preset: str, by: str) -> SetupError:
    if model.embedded:
        what = f"the preset {preset} ({by}) is for named models, and this is the embedded one ({model.said_by})"
        return SetupError(what, cure=f"Leave the preset out, or take {TINY}; VLM (pretrain: --vlm) names a model.")
    others = ", ".join(sorted(one.stem for one in PRESETS.glob("*.toml") if one.stem != TINY))
    what = f"the preset {TINY} ({by}) is for the embedded model, and this is {model.name} ({model.said_by})"
    found = gpus()
    fits = f"; for {found[0]} take {fitting_preset(found)}" if found else ""
    return SetupError(what, cure=f"Take one of {others}{fits}.")


def _file(flag: Path | None) -> tuple[Path | None, str]:
    variable, usual = os.environ.get("SETTINGS_FILE"), Path("settings.toml")
    if flag:
        over = f", which goes before SETTINGS_FILE={variable}" if variable and Path(variable) != flag else ""
        return flag, f"--settings{over}"
    if variable:
        return Path(variable), "SETTINGS_FILE"
    return (usual, "in the working directory") if usual.is_file() else (None, f"none: there is no {usual}")
