"""The memory estimate against tensors that were counted: weights, adapter and optimiser; and its tables.

Activations are counted in tests/test_activations.py.
"""

import pytest
import torch
import toy_families
from transformers import AutoModelForImageTextToText

from pipelines.common.vlm.activations import Step
from pipelines.common.vlm.load import load
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.optimiser import make_optimiser
from pipelines.common.vlm.published import PUBLISHED, qwen2_vl_2b
from pipelines.common.vlm.settings import LoopSettings, LoraSettings
from pipelines.common.vlm.vram import CARDS, GB, comparison, count_weights, estimate, markdown_table, models
from pipelines.openpack.settings import load_settings

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = LoraSettings(rank=4, alpha=8, vision=False)


@pytest.fixture(scope="module")
def full():
    """Config and weights of the default model with the T4 preset's adapter."""
    config = qwen2_vl_2b()
    return config, count_weights(config, LoraSettings(vision=False))


@pytest.mark.parametrize(
    ("name", "listed"),
    zip(PUBLISHED, (2_208_985_600, 3_754_622_976, 8_292_166_656, 2_127_532_032, 7_063_431_168), strict=True),
)
def test_published_configs_make_models_with_the_published_number_of_weights(name: str, listed: int):
    """As the hub lists them; for LLaVA summed up: Llama 7B's 6,738,415,616 and 64 tokens more at both ends, CLIP-L's
    303,507,456, projector and line break."""
    with torch.device("meta"):
        made = AutoModelForImageTextToText.from_config(PUBLISHED[name]())
    assert made.num_parameters() == listed


def test_the_adapter_of_the_default_model(full):
    assert full[1].lora == 18_464_768


@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("family", toy_families.FAMILIES)
def test_weights_adapter_and_optimiser_equal_counted_tensors(tmp_path, family: str, vision: bool):
    model, processor = toy_families.FAMILIES[family]()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
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


@pytest.mark.parametrize("kind", ["adamw_8bit", "muon"])
def test_moments_of_other_optimisers_equal_counted_tensors(kind: str):
    model, _ = toy_families.qwen2_vl()
    lora = LoraSettings(rank=64, vision=False)
    made = estimate(model.config, count_weights(model.config, lora), Step(optimiser=kind))
    tuned = put_lora(model, lora, gradient_checkpointing=False)
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.ones_like(weight)
    optimiser = make_optimiser(trained, LoopSettings(steps=1, optimiser=kind))
    optimiser.step(1e-4)
    tensors = _moments(optimiser)
    assert {moment.dtype for moment in tensors} == {torch.float32} | ({torch.uint8} if kind == "adamw_8bit" else set())
    counted = sum({moment.data_ptr(): moment.nbytes for moment in tensors if moment.ndim}.values())
    assert made.optimiser == pytest.approx(counted, rel=0.01)  # a last block that is not full has scales too


def _moments(optimiser) -> list[torch.Tensor]:
    states = [state for part in optimiser.state() for state in part["state"].values()]
    packed = [state.get("__bnb_optimizer_quant_state__", state) for state in states]
    return [moment for state in packed for moment in state.values() if hasattr(moment, "nbytes")]


def packed_bytes(weight) -> int:
    state = weight.quant_state
    parts = weight, state.absmax, state.code, state.state2.absmax, state.state2.code
    return sum(part.nbytes for part in parts)


def test_each_measure_of_the_preset_saves_what_it_is_there_for(full):
    config, weights = full

    def total(**changes) -> float:
        return estimate(config, weights, Step(**changes)).total / GB

    assert 2.6 < total(batch_size=1) - 0.5 < 3.2
    assert total(all_logits=True) - total() > 2
    assert total(gradient_checkpointing=False) - total() > 5
    assert total(frames=16) > total(frames=8) > total(frames=8, image=224)
    assert estimate(config, weights, Step()).fits(CARDS["T4"])
    assert not estimate(config, weights, Step(batch_size=64)).fits(CARDS["T4"])


def test_the_table_shows_every_estimate_of_the_t4_preset(full):
    preset = load_settings(preset="t4").finetune
    assert (preset.lora.rank, preset.lora.vision, preset.quantization) == (LoraSettings().rank, False, "nf4")
    assert (preset.loop.batch_size, preset.gradient_checkpointing) == (Step().batch_size, Step().gradient_checkpointing)
    rows = comparison(full[0], preset.lora)
    rows |= models(preset.lora)
    table = markdown_table(rows).splitlines()
    assert len(table) == len(rows) + 2
    assert len({line.count("|") for line in table}) == 1
    for line, (name, made) in zip(table[2:], rows.items(), strict=True):
        assert f"| {name} |" in line
        assert f"**{made.total / GB:.2f}**" in line


def test_the_total_is_the_sum_of_the_parts(full):
    config, weights = full
    made = estimate(config, weights, Step())
    assert made.total == sum(made.parts().values()) == made.allocated + made.context
    assert made.gradients == made.lora == made.optimiser / 2
