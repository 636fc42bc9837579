"""The tables of memory: which model fits which preset, and that ARCHITECTURE.md shows what the functions say."""

from pathlib import Path

import pytest

from pipelines.common.vlm import vram
from pipelines.common.vlm.published import PUBLISHED, llava_next_video_7b, qwen2_vl_2b
from pipelines.common.vlm.settings import LoraSettings
from pipelines.common.vlm.vram import CARDS, GB, comparison, markdown_table, models
from pipelines.openpack.settings import PRESETS, load_settings
from pipelines.openpack.vram import PRESET_CARDS, answer_parts, answer_table, plan_of, preset_table

ARCHITECTURE = Path(__file__).parents[1] / "ARCHITECTURE.md"
LORA = LoraSettings(vision=False)


@pytest.fixture(scope="module")
def by_preset() -> str:
    return preset_table()


def test_every_preset_of_a_full_size_training_has_a_card():
    assert {file.stem for file in PRESETS.glob("*.toml")} == {*PRESET_CARDS, "tiny"}


def test_the_table_tells_for_every_model_and_preset_whether_it_fits(by_preset: str):
    table, changes = by_preset.split("\n\n")
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()[2:]}
    assert list(rows) == [name.rpartition("/")[2] for name in PUBLISHED]
    made = plan_of(load_settings(preset="h100").finetune).estimate(llava_next_video_7b())
    assert not made.fits(CARDS[PRESET_CARDS["h100"]])
    assert rows["LLaVA-NeXT-Video-7B-hf"].split(" | ")[4].rstrip(" |") == f"**no**, {made.total / GB:.1f}"
    assert "no" not in rows["Qwen2-VL-2B-Instruct"]
    assert table.count("**no**") == len(changes.splitlines())
    assert "- LLaVA-NeXT-Video-7B-hf with `h100`: Set `[finetune] gradient_checkpointing = true`" in changes


def test_architecture_shows_what_the_functions_say(by_preset: str):
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert markdown_table(comparison(qwen2_vl_2b(), LORA)) in text
    assert markdown_table(models(LORA)) in text
    assert by_preset in text
    assert answer_table() in text
    assert answer_parts() in text


def test_the_command_prints_the_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["vram", "--config", "llava-hf/LLaVA-NeXT-Video-7B-hf"])
    vram.main()
    shown = capsys.readouterr().out
    assert shown.startswith("llava-hf/LLaVA-NeXT-Video-7B-hf\n")
    assert markdown_table(comparison(llava_next_video_7b(), LORA)) in shown
    assert markdown_table(models(LORA)) in shown
