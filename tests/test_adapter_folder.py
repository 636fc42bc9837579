"""The adapter as others use it: with PEFT alone, merged into its base, and with a card that says what it is."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from toy_vlm import answer, question

from pipelines.common.errors import DataError
from pipelines.common.files import read_json, write_json
from pipelines.common.vlm.load import load
from pipelines.openpack.finetune import ADAPTER, CARD, finetune, read_adapter
from pipelines.openpack.merge import merge
from pipelines.openpack.pretrain import BASE, read_base
from pipelines.openpack.settings import FinetuneSettings, load_settings
from pipelines.openpack.taxonomy import LABELS

PLAIN = """
import sys
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
base, adapter = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter)
AutoProcessor.from_pretrained(adapter)
weights = [weight for name, weight in model.named_parameters() if "lora_B" in name]
assert weights and any(weight.any() for weight in weights)
assert not any(name.split(".")[0] in ("pipelines", "assets", "resources") for name in sys.modules)
"""


def short() -> FinetuneSettings:
    made = load_settings(preset="tiny").finetune
    update = {"steps": 3, "batch_size": 2, "learning_rate": 1e-2, "threads": 1, "tensorboard": True}
    lora = made.lora.model_copy(update={"rank": 4, "vision": False})
    return made.model_copy(update={"loop": made.loop.model_copy(update=update), "lora": lora, "processes": 1})


@pytest.fixture(scope="module")
def adapter(toy_base: Path, toy_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "adapter"
    finetune(toy_base, toy_shards, out, short(), str)
    return out


def test_peft_loads_it_without_this_project(toy_base: Path, adapter: Path, tmp_path: Path):
    subprocess.run([sys.executable, "-c", PLAIN, str(toy_base), str(adapter)], cwd=tmp_path, check=True)


def test_the_merged_model_answers_as_base_and_adapter(toy_base: Path, adapter: Path, tmp_path: Path):
    merged = merge(toy_base, adapter, tmp_path / "merged", "cpu")
    assert read_base(tmp_path / "merged") == merged
    assert merged.parameters == read_base(toy_base).parameters
    assert (tmp_path / "merged" / LABELS).read_text() == (adapter / LABELS).read_text()
    both, base = load(toy_base, adapter=adapter, device="cpu"), load(toy_base, device="cpu")
    whole = load(tmp_path / "merged", device="cpu")
    rows = both.encoder.encode([question(1), question(2)], [answer(1).text(), answer(2).text()])
    with torch.inference_mode():
        made, expected, without = (vlm.model(**vlm.encoder.collate(rows)).logits for vlm in (whole, both, base))
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(made, without, atol=1e-3)


def test_an_adapter_of_another_base_is_not_merged(toy_base: Path, adapter: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    write_json(other / BASE, asdict(read_base(toy_base)) | {"digest": "0123456789abcdef"})
    with pytest.raises(DataError, match="this one is 0123456789abcdef"):
        merge(other, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_card_says_what_it_was_trained_on_and_how_without_a_blank(toy_base: Path, adapter: Path):
    card, made = (adapter / CARD).read_text(), read_adapter(adapter)
    assert made.base_digest in card
    assert f"{made.clips} training clips of 1 sessions of 1 persons" in card
    assert "source `simulated`, view `video`" in card
    assert f"{made.trained_parameters:,}" in card
    assert f"of the last 3 steps was {sum(loss for _, loss in made.losses) / 3:.4f}" in card
    counted = [int(line.split("|")[3]) for line in card.splitlines() if line.count("|") == 4 and line[-3].isdigit()]
    assert sum(counted) == made.clips
    for blank in ("More Information Needed", "[optional]", "{", "None"):
        assert blank not in card.replace("None stand here", "")


def test_curves_are_kept_beside_the_adapter(adapter: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (board,) = adapter.with_name("adapter.tensorboard").iterdir()
    events = EventAccumulator(str(board)).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "learning_rate", "clips_per_second", "input_wait_share"}
    drawn = {event.step: event.value for event in events.Scalars("loss")}
    assert drawn == pytest.approx(dict(read_json(adapter / ADAPTER)["losses"]))
