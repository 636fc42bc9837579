"""Every family of models through the same code: prompts, batches, training, scoring, 4 bits, loading.

The models are real classes at toy size with random weights: these tests say that the parts fit, not how well any
published model answers.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy_families
from peft import LoraConfig, get_peft_model
from toy_vlm import CODES, answer, question
from transformers import AutoConfig

from pipelines.common.errors import SetupError
from pipelines.common.vlm import tiny
from pipelines.common.vlm.dialogue import ANSWER_PHRASES, Question, conclude
from pipelines.common.vlm.encode import IGNORED, Encoder, to_device
from pipelines.common.vlm.families import FAMILIES, Qwen3VL, by_model_type
from pipelines.common.vlm.features import PairFeatures
from pipelines.common.vlm.generate import generate
from pipelines.common.vlm.load import Vlm, keep_frame_size, load
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.score import score
from pipelines.common.vlm.settings import LoraSettings, TinySettings
from pipelines.common.vlm.train import loss_sum

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
NAMES = [family.model_type for family in FAMILIES]


@pytest.fixture(scope="module", params=NAMES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def vlm(family: str) -> Vlm:
    return toy_families.make(family)


@pytest.fixture(scope="module")
def saved(family: str, vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "a-folder-of-any-name"
    vlm.model.save_pretrained(folder)
    vlm.encoder.processor.save_pretrained(folder)
    return folder


def logits(vlm: Vlm, *questions: Question, left: bool = False) -> torch.Tensor:
    """(batch, vocabulary) after each prompt."""
    rows = vlm.encoder.encode(questions)
    with torch.inference_mode():
        made = vlm.model(**vlm.encoder.collate(rows, left=left)).logits
    ends = [-1 if left else len(row.ids) - 1 for row in rows]
    return torch.stack([made[i, end] for i, end in enumerate(ends)])


def shown(vlm: Vlm, asked: Question) -> str:
    """The prompt as text, every stretch of picture tokens as one ▮."""
    (row,) = vlm.encoder.encode([asked])
    text = vlm.encoder.tokenizer.decode(row.ids, skip_special_tokens=False)
    token = vlm.encoder.processor.video_token
    while token * 2 in text:
        text = text.replace(token * 2, token)
    return text.replace(token, "▮")


# --- prompts ---


def test_every_line_with_its_true_numbers_stands_right_before_its_pair(family: str, vlm: Vlm):
    marks = {"qwen3_vl": ("<{} seconds><|vision_start|>", "<|vision_end|>"), "llava_next_video": ("", "\n")}
    before, after = marks.get(family, ("<|vision_start|>", "<|vision_end|>"))
    asked = replace(question(1), pairs=((11, 12), (70, 72), (90, 91)))
    expected = "".join(
        f"Frames {low} to {high}, seen at {a} and {b}:\n{before.format(time)}▮{after}"
        for low, high, (a, b), time in zip((0, 40, 80), (40, 80, 125), asked.pairs, (0.5, 2.8, 3.6), strict=True)
    )
    assert f"{expected}What is done?" in shown(vlm, asked)


def test_a_swapped_picture_and_a_changed_number_reach_the_model(vlm: Vlm):
    one = question(1)
    swapped = replace(one, videos=(one.videos[1], one.videos[0], *one.videos[2:]))
    turned = replace(one, videos=(one.videos[0][::-1].copy(), *one.videos[1:]))
    renumbered = replace(one, pairs=((1, 3), *one.pairs[1:]))
    plain, *others = logits(vlm, one, swapped, turned, renumbered)
    for other in others:
        assert not torch.allclose(plain, other, atol=1e-3)
    same, less = (vlm.encoder.encode([asked])[0].ids for asked in (swapped, renumbered))
    assert same == vlm.encoder.encode([one])[0].ids != less


def test_labels_are_the_answer_and_its_end_and_nothing_else(vlm: Vlm):
    encoder, answers = vlm.encoder, [answer(seed).text() for seed in range(2)]
    asked = [question(0), question(1, text="What is done? A longer text.")]
    rows = encoder.encode(asked, answers)
    batch, labels = encoder.collate(rows), encoder.labels(rows)
    counted = labels != IGNORED
    assert torch.equal(labels[:, :-1][counted[:, :-1]], batch["input_ids"][:, 1:][counted[:, :-1]])
    for row, kept, text in zip(rows, labels, answers, strict=True):
        assert row.ids[: row.prompt] == encoder.encode([asked[rows.index(row)]])[0].ids
        text += "</s>" if encoder.family.model_type == "llava_next_video" else "<|im_end|>"
        assert encoder.tokenizer.decode(kept[kept != IGNORED], skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("name", "tokens"), [("qwen2_vl", 576), ("qwen2_5_vl", 576), ("qwen3_vl", 400), ("llava_next_video", 1152)]
)
def test_tokens_that_eight_frames_become_at_full_size(name: str, tokens: int):
    """Processors at their published sizes: the embedded Qwen2-VL's and the toy LLaVA's reduce frames."""
    full = {
        "qwen2_vl": lambda: tiny.processor((), TinySettings(image=336, patch=14)),
        "llava_next_video": lambda: toy_families.llava_next_video(336)[1],
    }
    processor = full.get(name, lambda: toy_families.FAMILIES[name]()[1])()
    keep_frame_size(processor)
    frames = tuple(np.zeros((2, 336, 336, 3), np.uint8) for _ in range(4))
    asked = Question(frames, (0, 30, 60, 90, 125), ((1, 2), (40, 42), (70, 71), (100, 101)), "What?")
    (row,) = Encoder(processor, by_model_type(name)).encode([asked])
    assert sum(kind == 2 for kind in row.kinds) == tokens


# --- why the line before each pair, in every family ---


class TimesOnly(Qwen3VL):
    """Qwen3-VL with its own times and no line of ours."""

    def content(self, question, processor):
        return [{"type": "text", "text": processor.video_token * len(question.pairs) + question.text}]


def test_the_times_of_qwen3_vl_alone_would_not_tell_frames_apart():
    """They are rounded to a tenth of a second, two frames and a half, and name no stretch."""
    one = question(1, bounds=(0, 40, 80, 125))
    other = replace(one, bounds=(0, 42, 79, 125), pairs=((2, 3), (42, 43), *one.pairs[2:]))
    one = replace(one, pairs=((1, 3), (41, 43), *one.pairs[2:]))
    processor = toy_families.make("qwen3_vl").encoder.processor
    without, with_lines = Encoder(processor, TimesOnly()), Encoder(processor)
    assert without.encode([one])[0].ids == without.encode([other])[0].ids
    assert with_lines.encode([one])[0].ids != with_lines.encode([other])[0].ids


def test_the_clock_of_qwen2_5_vl_says_nothing_about_pairs():
    """`second_per_grid_ts` spaces patches inside a video; a pair is one patch."""
    vlm = toy_families.make("qwen2_5_vl")
    batch = vlm.encoder.collate(vlm.encoder.encode([question(1)]))
    with torch.inference_mode():
        plain, slow = (
            vlm.model(**batch, second_per_grid_ts=torch.tensor([seconds] * 3)).logits for seconds in (0.08, 5.0)
        )
        without = vlm.model(**batch).logits
    assert torch.equal(plain, slow)
    assert torch.equal(plain, without)


# --- the same code for all ---


def test_the_loss_is_finite_and_reaches_every_weight_of_the_adapter(family: str):
    vlm = toy_families.make(family)
    model = put_lora(vlm.model, LoraSettings(rank=4, alpha=8, vision=False), gradient_checkpointing=True).train()
    _gradients_everywhere(model, vlm)


def test_the_tower_s_targets_are_all_its_linears_that_the_loss_depends_on(family: str):
    vlm = toy_families.make(family)
    targets = vlm.encoder.family.vision_targets(vlm.model.config)
    tower = vlm.encoder.family.tower
    linears = {
        name
        for name, module in vlm.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(tower)
    }
    model = get_peft_model(vlm.model, LoraConfig(r=4, target_modules=targets)).train()
    _gradients_everywhere(model, vlm)
    untrained = {
        name
        for name in linears
        if f"base_model.model.{name}.lora_A.default.weight" not in dict(model.named_parameters())
    }
    last = {name for name in linears if "encoder.layers.2." in name}  # of CLIP: computed, and never taken
    assert untrained == (last if family == "llava_next_video" else set())


def _gradients_everywhere(model, vlm: Vlm) -> None:
    rows = vlm.encoder.encode([question(1), question(2)], [answer(1).text(), answer(2).text()])
    loss = loss_sum(model, vlm.encoder, rows, CPU)
    assert torch.isfinite(loss)
    loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    for name, weight in trained.items():
        assert weight.grad is not None, name
        assert "lora_A" in name or weight.grad.abs().sum() > 0, name  # A's is zero as long as B is


def test_a_batch_of_two_padded_on_either_side_equals_one_by_one(vlm: Vlm):
    asked = [question(1), question(2, text="What is done? And a much longer text that pads the other one.")]
    alone = torch.cat([logits(vlm, one) for one in asked])
    for left in (False, True):
        torch.testing.assert_close(logits(vlm, *asked, left=left), alone, atol=1e-4, rtol=1e-4)


def test_kept_features_stand_in_for_pixels(vlm: Vlm):
    rows = vlm.encoder.encode([question(1), question(2)], [answer(1).text(), answer(2).text()])
    seen = vlm.encoder.see(vlm.model, rows)
    assert all(row.pixels is None for row in seen)
    with torch.inference_mode():
        plain = vlm.model(**vlm.encoder.collate(rows)).logits
        again = vlm.model(**to_device(vlm.encoder.collate(seen), CPU)).logits
    torch.testing.assert_close(plain, again, atol=1e-5, rtol=1e-4)


def test_pairs_alone_and_in_another_order_give_the_features_of_the_clip(vlm: Vlm, monkeypatch):
    """Equal ones are looked at once, and with an adapter on the tower not taken for those without it."""
    asked = question(1)
    order = [1, 2, 0]
    shuffled = replace(asked, videos=tuple(asked.videos[i] for i in order))
    rows, looks = vlm.encoder.encode([asked, shuffled]), []
    (whole,) = vlm.encoder.see(vlm.model, rows[:1])
    look = type(vlm.encoder.family).look

    def counted(self, model, pixels, grid):
        looks.append(pixels.numel())
        return look(self, model, pixels, grid)

    monkeypatch.setattr(type(vlm.encoder.family), "look", counted)
    features = PairFeatures(vlm.model, vlm.encoder)
    with features.kept():
        first, second = features.fill(rows)
        assert sum(looks) == rows[0].pixels.numel()
        assert torch.equal(features.fill(rows[1:])[0].features, second.features)
        assert sum(looks) == rows[0].pixels.numel()
    features.fill(rows[:1])
    assert sum(looks) == 2 * rows[0].pixels.numel()
    torch.testing.assert_close(first.features, whole.features, atol=1e-5, rtol=1e-4)
    parts = first.features.chunk(3)
    assert torch.equal(second.features, torch.cat([parts[i] for i in order]))


@pytest.mark.parametrize("vision", [True, False])
def test_base_and_adapter_share_what_they_see_where_the_tower_is_not_tuned(family: str, vision: bool):
    made = toy_families.make(family)
    model = put_lora(made.model, LoraSettings(rank=2, vision=vision), gradient_checkpointing=False)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    features, rows = PairFeatures(model, made.encoder), made.encoder.encode([question(1)])
    with features.kept():
        (tuned,) = features.fill(rows)
        with model.disable_adapter():
            (base,) = features.fill(rows, adapted=False)
    assert torch.equal(tuned.features, base.features) != vision


def test_scores_over_a_shared_prefix_equal_naive_scores(vlm: Vlm):
    """Two prompts of unlike length, so that padding counts too; one sequence, of the code that is surest each time."""
    asked = [question(3), question(4, text="What is done? And a longer text.")]
    first, and_, to_next, _ = ANSWER_PHRASES
    close = {"abs": 1e-4, "rel": 1e-3}
    for one, made in zip(asked, score(vlm, asked, CODES, hypotheses=1), strict=True):
        said, probable, sequence = first, 1.0, []
        for stretch, phrase in zip(made.seen.values(), (and_, and_, to_next), strict=True):
            shares = naive(vlm, one, said)
            assert stretch == pytest.approx(shares, **close)
            sequence.append(max(shares, key=lambda code: shares[code]))
            probable *= shares[sequence[-1]]
            said += sequence[-1] + phrase
        found = conclude(sequence, one.bounds)
        assert made.span[found.start, found.end] == pytest.approx(1)
        after = naive(vlm, one, said) if found.next is None else {code: float(code == found.next) for code in CODES}
        rest = naive(vlm, one, said)
        expected = {code: probable * after[code] + (1 - probable) * rest[code] for code in CODES}
        assert made.next == pytest.approx(expected, **close)


def naive(vlm: Vlm, asked: Question, before: str) -> dict[str, float]:
    """How probable each code is after the prompt and `before`, among the codes, as one sequence without any cache."""
    (row,) = vlm.encoder.encode([asked])
    with torch.inference_mode():
        logits = vlm.model(**vlm.encoder.collate([row], opening=vlm.encoder.ids(before))).logits[0, -1].float()
    tokens = [vlm.encoder.ids(code)[0] for code in CODES]
    return dict(zip(CODES, torch.softmax(logits[tokens], -1).tolist(), strict=True))


def test_generation_is_the_most_probable_token_each_time(vlm: Vlm):
    asked = [question(1), question(2, text="What is done? And a longer text.")]
    for one, text in zip(asked, generate(vlm, asked, most_tokens=4), strict=True):
        (row,) = vlm.encoder.encode([one])
        written: list[int] = []
        while len(written) < 4 and vlm.encoder.end not in written:
            with torch.inference_mode():
                written.append(int(vlm.model(**vlm.encoder.collate([row], opening=written)).logits[0, -1].argmax()))
        assert text == vlm.encoder.tokenizer.decode([token for token in written if token != vlm.encoder.end])


# --- loading ---


def test_a_saved_folder_loads_by_its_config_whatever_its_name(family: str, vlm: Vlm, saved: Path):
    again = load(saved, device="cpu")
    assert again.encoder.family is by_model_type(family)
    assert AutoConfig.from_pretrained(saved).model_type == family
    torch.testing.assert_close(logits(again, question(1)), logits(vlm, question(1)))


def test_in_4_bits_the_tower_stays_whole_and_lora_learns(saved: Path):
    vlm = load(saved, quantization="nf4", device="cpu")
    quantised = {name for name, module in vlm.model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantised
    assert all(name.startswith("model.language_model.layers.") for name in quantised)
    assert len(quantised) == 7 * 2  # all seven linears of both layers
    model = put_lora(vlm.model, LoraSettings(rank=4, alpha=8, vision=False), gradient_checkpointing=False).train()
    _gradients_everywhere(model, vlm)


def test_videollama2_says_what_it_needs(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "videollama2_mistral", "architectures": ["x"]}))
    with pytest.raises(SetupError, match=r"does not run on transformers 5.*transformers 4\.42\.3"):
        load(tmp_path)


def test_an_unknown_type_is_refused_with_those_that_are_known(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl_like"}))
    with pytest.raises(SetupError, match=r"qwen2_vl_like.*Qwen/Qwen2-VL-2B-Instruct.*llava_next_video"):
        load(tmp_path)


def test_a_processor_of_no_family_is_refused():
    with pytest.raises(SetupError, match="no adapter for the processor SimpleNamespace"):
        Encoder(SimpleNamespace())


def test_a_tokenizer_that_cannot_pad_is_refused():
    processor = toy_families.llava_next_video()[1]
    processor.tokenizer.pad_token = None
    with pytest.raises(SetupError, match="no padding token"):
        Encoder(processor)
