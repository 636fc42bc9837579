"""The memory estimate against tensors that were counted: weights, adapter, optimiser, and whole training steps."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_vlm import answer, question
from transformers import Qwen2Config, Qwen2VLForConditionalGeneration

from pipelines.common.errors import SetupError
from pipelines.common.vlm import dialogue, tiny
from pipelines.common.vlm.encode import Encoder
from pipelines.common.vlm.load import load
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.settings import LoraSettings, TinySettings
from pipelines.common.vlm.train import loss_sum
from pipelines.common.vlm.vram import (
    GB,
    T4,
    Step,
    comparison,
    count_weights,
    estimate,
    markdown_table,
    qwen2_vl_2b,
    vision_tokens,
)
from pipelines.openpack.settings import load_settings

# wide and with many patches, so that widths and lengths decide as they do at full size
SIZE = TinySettings(image=84, patch=7, hidden=192, layers=3, vision_hidden=128, vision_layers=3)
BOUNDS = (0, 31, 62, 93, 125)
LORA = LoraSettings(rank=4, alpha=8, vision=False)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def full():
    """Config and weights of the default model with the T4 preset's adapter."""
    config = qwen2_vl_2b()
    return config, count_weights(config, LoraSettings(vision=False))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def encoder() -> Encoder:
    phrases = (*dialogue.FRAME_PHRASES, *dialogue.ANSWER_PHRASES, *tiny.CHAT_PHRASES, "What is done?")
    return Encoder(tiny.processor(phrases, SIZE))


def toy(encoder: Encoder):
    torch.manual_seed(0)
    return tiny.model(encoder.tokenizer, SIZE)


def test_the_default_model_is_that_of_the_hub(full):
    config, weights = full
    with torch.device("meta"):
        made = Qwen2VLForConditionalGeneration(config)
    assert made.num_parameters() == 2_208_985_600
    assert weights.lora == 18_464_768
    assert vision_tokens(config, Step(frames=8, image=336)) == 8 * 72
    assert vision_tokens(config, Step(frames=7, image=340)) == 8 * 72  # an odd frame is filled up, a side rounded


@pytest.mark.parametrize("vision", [False, True])
def test_weights_adapter_and_optimiser_equal_counted_tensors(tmp_path, vision: bool):
    words = encoder()
    model = toy(words)
    model.save_pretrained(tmp_path)
    words.processor.save_pretrained(tmp_path)
    lora = LORA.model_copy(update={"vision": vision})
    made = estimate(model.config, count_weights(model.config, lora), Step())

    vlm = load(tmp_path, quantization="nf4", device="cpu")
    packed = [weight for weight in vlm.model.parameters() if hasattr(weight, "quant_state")]
    assert sum(map(packed_bytes, packed)) == made.weights_4bit
    whole = sum(weight.numel() for weight in vlm.model.parameters() if not hasattr(weight, "quant_state"))
    assert 2 * whole == made.weights_bf16  # on a CPU the same weights are in fp32
    assert 2 * max(weight.quant_state.shape.numel() for weight in packed) == made.dequantised

    tuned = put_lora(vlm.model, lora, gradient_checkpointing=False)
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    optimiser = torch.optim.AdamW(trained)
    optimiser.step()
    moments = [moment for state in optimiser.state.values() for name, moment in state.items() if name != "step"]
    assert sum(weight.nbytes for weight in trained) == made.lora
    assert sum(weight.grad.nbytes for weight in trained) == made.gradients
    assert sum(moment.nbytes for moment in moments) == made.optimiser


def packed_bytes(weight) -> int:
    state = weight.quant_state
    parts = weight, state.absmax, state.code, state.state2.absmax, state.state2.code
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_equal_those_of_a_counted_step(vision: bool, checkpointing: bool):
    words, lora, batch = encoder(), LORA.model_copy(update={"vision": vision}), 2
    rows = words.encode([question(i, bounds=BOUNDS) for i in range(batch)], [answer(i).text() for i in range(batch)])
    model = toy(words).to(torch.bfloat16)
    tuned = put_lora(model, lora, gradient_checkpointing=checkpointing).train()
    tuned.disable_input_require_grads()  # with the hook a graph through the frozen tower is kept as well
    with LiveBytes() as live:
        loss = loss_sum(tuned, words, rows, CPU)
        kept = live.now
        loss.backward()
    step = Step(batch, image=SIZE.image, line_tokens=0, gradient_checkpointing=checkpointing)
    prompt, whole = rows[0].prompt, len(rows[0].ids)
    text = prompt - vision_tokens(model.config, step)
    step = replace(step, instruction_tokens=text, answer_tokens=whole - prompt)
    made = estimate(model.config, count_weights(model.config, lora), step)
    assert made.kept == pytest.approx(kept, rel=0.1)
    assert 0.9 < (made.kept + made.transient + made.gradients) / live.most < 1.3  # not all parts are there at once


def test_each_measure_of_the_preset_saves_what_it_is_there_for(full):
    config, weights = full

    def total(**changes) -> float:
        return estimate(config, weights, Step(**changes)).total / GB

    assert 2.6 < total(batch_size=1) - 0.5 < 3.2
    assert total(all_logits=True) - total() > 2
    assert total(gradient_checkpointing=False) - total() > 5
    assert total(frames=16) > total(frames=8) > total(frames=8, image=224)
    assert estimate(config, weights, Step()).fits(T4)
    assert not estimate(config, weights, Step(batch_size=64)).fits(T4)


def test_the_table_shows_every_estimate_of_the_t4_preset(full):
    preset = load_settings(preset="t4").finetune
    assert (preset.lora.rank, preset.lora.vision, preset.quantization) == (LoraSettings().rank, False, "nf4")
    assert (preset.loop.batch_size, preset.gradient_checkpointing) == (Step().batch_size, Step().gradient_checkpointing)
    rows = comparison(full[0], preset.lora)
    table = markdown_table(rows).splitlines()
    assert len(table) == len(rows) + 2
    assert len({line.count("|") for line in table}) == 1
    for line, (name, made) in zip(table[2:], rows.items(), strict=True):
        assert f"| {name} |" in line
        assert f"**{made.total / GB:.2f}**" in line


def test_the_total_is_the_sum_of_the_parts(full):
    made = estimate(*full, Step())
    assert made.total == sum(made.parts().values()) == made.allocated + made.context
    assert made.gradients == made.lora == made.optimiser / 2


def test_a_family_without_known_sizes_is_refused(full):
    with pytest.raises(SetupError, match="qwen2"):
        estimate(Qwen2Config(), full[1], Step())
