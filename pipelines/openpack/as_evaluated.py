"""Settings to answer with by hand: those that the adapter was evaluated with, whatever the environment says today.

Belongs here: where they are found. A calibration was fitted to answers that were asked for in one way, so its folder's
`settings.json` goes with it. Without a calibration the records of base and adapter decide: the preset of that base, and
the bits that the adapter was trained beside. A file that is named by `--settings` changes single values of either;
PRESET, SETTINGS_FILE, VLM and `settings.toml` change none.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.common.errors import SetupError
from pipelines.common.files import read_json
from pipelines.common.layers import Layer, combine
from pipelines.openpack.effective import NAMED, TINY, Say, changes, to_stderr
from pipelines.openpack.finetune import SETTINGS as TRAINED
from pipelines.openpack.pretrain import recorded_model
from pipelines.openpack.settings import PRESETS, AllSettings

EVALUATED = "settings.json"  # beside calibration.json


def answer_settings(
    base: Path, adapter: Path, calibration: Path | None, path: Path | None = None, say: Say = to_stderr
) -> AllSettings:
    """`evaluation` for answers of `adapter` on `base`, folders of these stages; says where from. How a video becomes
    what is shown stands with the adapter (`preparation`).

    `calibration` is a file of an evaluation's folder, `path` the file of `--settings`. DataError where the evaluation's
    settings are missing, SetupError where they, or those of `path`, cannot be used.
    """
    layers = [_evaluated(calibration)] if calibration else _recorded(base, adapter)
    if path:
        layers.append(_of_evaluation(Layer.read(str(path), path, "Write it, or leave out --settings.")))
    layered = combine(AllSettings, layers)
    say(f"settings: {', '.join(f'{layer.name} ({layer.file})' for layer in layers)}")
    for line in changes(layered, ["evaluation"]):
        say(line)
    return layered.settings


def _of_evaluation(layer: Layer) -> Layer:
    """SetupError for a file that says something of other stages, which would change nothing here."""
    if others := sorted(layer.values.keys() - {"evaluation"}):
        cure = "Answers take [evaluation] alone; how videos are prepared goes with the adapter."
        raise SetupError("this changes nothing in an answer", file=layer.file, where=", ".join(others), cure=cure)
    return layer


def _evaluated(calibration: Path) -> Layer:
    file = calibration.with_name(EVALUATED)
    return Layer("the evaluation's", file, {"evaluation": read_json(file)})


def _recorded(base: Path, adapter: Path) -> list[Layer]:
    """What stands in for an evaluation: answers are not calibrated then."""
    preset = TINY if recorded_model(base).embedded else NAMED
    layers = [Layer.read(f"the preset {preset} of this base", PRESETS / f"{preset}.toml", "Install the project again.")]
    trained = adapter / TRAINED
    if trained.is_file():
        bits = {"quantization": read_json(trained)["quantization"]}
        layers.append(Layer("the adapter's bits", trained, {"evaluation": bits}))
    return layers
