"""The activations of the memory estimate against tensors that were counted over whole steps, in every family."""

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import toy_families
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_vlm import PHRASES, answer
from transformers import Qwen2Config

from pipelines.common.errors import SetupError
from pipelines.common.vlm import tiny
from pipelines.common.vlm.activations import TOWERS, Step, of_clip, tower_of, vision_tokens
from pipelines.common.vlm.dialogue import Question
from pipelines.common.vlm.encode import Encoder
from pipelines.common.vlm.families import FAMILIES
from pipelines.common.vlm.features import VisionFeatures
from pipelines.common.vlm.load import keep_frame_size
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.published import PUBLISHED, llava_next_video_7b, qwen2_vl_2b
from pipelines.common.vlm.settings import LoraSettings, TinySettings
from pipelines.common.vlm.train import loss_sum
from pipelines.common.vlm.vram import count_weights, estimate

pytestmark = pytest.mark.usefixtures("one_thread")

BOUNDS = (0, 31, 62, 93, 125)
LORA = LoraSettings(rank=4, alpha=8, vision=False)
CPU = torch.device("cpu")
SIDE = 112
# wide and with many patches, so that widths and lengths decide as they do at full size
WIDE, MLP, TOWER, TOWER_MLP, LAYERS, HEADS = 256, 512, 192, 384, 3, 4


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside that are still there, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            self._see(tensor, from_outside=True)
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            self._see(tensor)
        return made

    def _see(self, tensor, from_outside: bool = False) -> None:
        if not isinstance(tensor, torch.Tensor) or (storage := tensor.untyped_storage())._cdata in self._sizes:
            return
        size = self._sizes[storage._cdata] = 0 if from_outside else storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def wide(family: str) -> tuple[Any, Encoder]:
    """A model of the family with its real classes, in bf16."""
    torch.manual_seed(0)
    if family == "qwen2_vl":
        size = TinySettings(image=84, patch=7, hidden=WIDE, layers=LAYERS, vision_hidden=TOWER, vision_layers=LAYERS)
        processor = tiny.processor(PHRASES, size)
        embedded: Any = tiny.model(processor.tokenizer, size)
        return embedded.to(torch.bfloat16), Encoder(processor)
    made, processor = (
        toy_families.llava_next_video(SIDE) if family == "llava_next_video" else toy_families.FAMILIES[family]()
    )
    config, text, vision = made.config, made.config.text_config, made.config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = WIDE, MLP, LAYERS
    text.head_dim = WIDE // HEADS
    if family == "llava_next_video":
        vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = TOWER, TOWER_MLP, LAYERS + 1
        vision.num_attention_heads = HEADS
    else:
        vision.hidden_size, vision.intermediate_size, vision.depth = TOWER, TOWER_MLP, LAYERS
        vision.out_hidden_size, vision.num_heads = WIDE, HEADS
        text.rope_parameters["mrope_section"] = [16, 8, 8]
    if family == "qwen2_5_vl":
        text.layer_types, vision.fullatt_block_indexes = (
            ["full_attention"] * LAYERS,
            [LAYERS - 1],
        )  # the others: windows
    if family == "qwen3_vl":
        vision.deepstack_visual_indexes = [0, 1]
    keep_frame_size(processor)
    return type(made)(config).to(torch.bfloat16), Encoder(processor)


def question(seed: int) -> Question:
    rng = np.random.default_rng(seed)
    pairs = tuple((low + 1, low + 2) for low in BOUNDS[:-1])
    videos = tuple(rng.integers(0, 255, (2, SIDE, SIDE, 3), dtype=np.uint8) for _ in pairs)
    return Question(videos, BOUNDS, pairs, "What is done?")


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", TOWERS)
def test_activations_equal_those_of_a_counted_step(family: str, checkpointing: bool, vision: bool):
    lora, batch = LORA.model_copy(update={"vision": vision}), 2
    model, encoder = wide(family)
    rows = encoder.encode([question(i) for i in range(batch)], [answer(i).text() for i in range(batch)])
    hook = checkpointing  # as in the presets
    tuned = put_lora(model, lora, gradient_checkpointing=checkpointing, input_require_grads=hook).train()
    if not hook:
        tuned.disable_input_require_grads()
    pixels = sum(row.pixels.nbytes for row in rows if row.pixels is not None) / batch
    with LiveBytes() as look:
        seen = VisionFeatures(tuned, encoder).fill(rows, range(batch))
    with LiveBytes() as live:
        loss = loss_sum(tuned, encoder, rows if vision else seen, CPU)
        kept = live.now
        loss.backward()
    prompt, whole = rows[0].prompt, len(rows[0].ids)
    step = Step(batch, image=84 if family == "qwen2_vl" else SIDE, line_tokens=0, gradient_checkpointing=checkpointing)
    shown = vision_tokens(model.config, step)
    assert shown == rows[0].kinds.count(2)
    step = replace(step, instruction_tokens=prompt - shown, answer_tokens=whole - prompt)
    made = estimate(model.config, count_weights(model.config, lora), step)
    assert made.kept == pytest.approx(kept, rel=0.1)
    assert 0.9 < (made.kept + made.transient + made.gradients) / live.most < 1.3  # not all parts are there at once
    if not vision:
        assert of_clip(model.config, step, vision).vision == pytest.approx(look.most + pixels, rel=0.1)


def test_every_family_that_can_be_trained_has_an_estimate():
    assert set(TOWERS) == {family.model_type for family in FAMILIES}


@pytest.mark.parametrize(("name", "tokens"), zip(PUBLISHED, (576, 576, 576, 400, 1152), strict=True))
def test_eight_frames_become_as_many_tokens_as_the_processor_makes(name: str, tokens: int):
    """tests/test_families.py counts them in the processors' output."""
    assert vision_tokens(PUBLISHED[name](), Step(frames=8, image=336)) == tokens


def test_an_odd_frame_is_filled_up_and_a_side_rounded_but_not_in_llava():
    assert vision_tokens(qwen2_vl_2b(), Step(frames=7, image=340)) == 8 * 72
    assert vision_tokens(llava_next_video_7b(), Step(frames=7, image=224)) == 7 * 144


def test_layers_that_the_loss_does_not_depend_on_keep_nothing():
    tower = tower_of(llava_next_video_7b(), Step())
    assert (tower.layers, tower.unused) == (23, 1)


def test_a_family_without_known_sizes_is_refused():
    with pytest.raises(SetupError, match="type qwen2") as error:
        of_clip(Qwen2Config(), Step(), vision=False)
    assert "qwen2_vl, qwen2_5_vl, qwen3_vl, llava_next_video" in error.value.cure
