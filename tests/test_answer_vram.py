"""The memory of an evaluation: counted tensor by tensor, in numbers for published models, refused before training."""

from typing import Any

import pytest
from test_activations import CPU, LORA, SIDE, LiveBytes, question, wide

from pipelines.common.errors import SetupError
from pipelines.common.vlm import answer_vram
from pipelines.common.vlm.activations import TOWERS, Step, vision_tokens
from pipelines.common.vlm.answer_vram import estimate_answers
from pipelines.common.vlm.features import PairFeatures
from pipelines.common.vlm.load import Vlm
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.published import PUBLISHED
from pipelines.common.vlm.room import Card, refuse
from pipelines.common.vlm.score import score
from pipelines.common.vlm.vram import CARDS, GB
from pipelines.openpack.settings import load_settings
from pipelines.openpack.vram import answer_plan_of

pytestmark = pytest.mark.usefixtures("one_thread")

T4 = CARDS["T4"]
SEVEN, LLAVA = "Qwen/Qwen2.5-VL-7B-Instruct", "llava-hf/LLaVA-NeXT-Video-7B-hf"


def plan(preset: str = "t4", **changed: Any) -> answer_vram.AnswerPlan:
    settings = load_settings(preset=preset)
    return answer_plan_of(settings.evaluation.model_copy(update=changed), settings.finetune.lora)


@pytest.mark.parametrize("family", TOWERS)
def test_what_answering_takes_beside_weights_was_counted(family: str, monkeypatch):
    """On the device: with pictures prepared and the tower's work done before, as it is."""
    model, encoder = wide(family)
    tuned = put_lora(model, LORA, gradient_checkpointing=False).eval()
    asked, hypotheses = [question(number) for number in range(4)], 8
    rows = PairFeatures(tuned, encoder).fill(encoder.encode(asked))
    monkeypatch.setattr(encoder, "encode", lambda questions: rows)
    with LiveBytes() as live:
        score(Vlm(tuned, encoder, CPU), asked, "ABCD", hypotheses=hypotheses, features=list)
    image = 84 if family == "qwen2_vl" else SIDE
    shown = vision_tokens(model.config, Step(image=image))

    def step(batch_size: int, **others: Any) -> Step:
        others |= {"image": image, "line_tokens": 0, "instruction_tokens": len(rows[0].ids) - shown}
        return Step(batch_size, **others)

    monkeypatch.setattr(answer_vram, "Step", step)
    made = estimate_answers(model.config, LORA, "none", len(asked), hypotheses)
    counted = made.prompts + made.sequences + made.transient
    assert 0.9 < counted / live.most < 1.3


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_is_evaluated_on_a_t4_with_its_preset(name: str):
    lines: list[str] = []
    refuse(PUBLISHED[name](), plan(), Card("Tesla T4", T4, T4), lines.append)
    total = plan().estimate(PUBLISHED[name]()).total
    assert lines == [f"the evaluation: {total / GB:.1f} GB estimated, 15.8 GB free on Tesla T4"]


def test_prompts_are_held_once_and_one_model_is():
    """17.2 and 55 GB were taken before, with two models and a copy of the prompt for each of eight sequences."""
    seven, llava = (plan().estimate(PUBLISHED[name]()) for name in (SEVEN, LLAVA))
    assert seven.total == pytest.approx(10.4 * GB, rel=0.02)
    assert llava.total == pytest.approx(13.9 * GB, rel=0.02)
    assert plan(hypotheses=1).estimate(PUBLISHED[LLAVA]()).prompts == llava.prompts


def test_what_does_not_fit_is_refused_with_the_batch_that_does():
    with pytest.raises(SetupError, match=r"the evaluation takes about .* GB, and of Tesla T4") as error:
        refuse(PUBLISHED[LLAVA](), plan(batch_size=32), Card("Tesla T4", T4, T4), print)
    assert error.value.cure.startswith("Set `[evaluation] batch_size = 8`: about 13.")
    assert "| prompts | sequences |" in str(error.value)
    with pytest.raises(SetupError) as error:
        refuse(PUBLISHED[SEVEN](), plan(quantization="none"), Card("Tesla T4", T4, T4), print)
    assert '`[evaluation] batch_size = 1`, `[evaluation] quantization = "nf4"`' in error.value.cure
