"""Half precision where a GPU has no bf16: which type is taken, norms in fp32, and the scale of the loss."""

import pytest
import torch
from test_train import run, settings
from toy_families import FAMILIES, make
from toy_vlm import question

from pipelines.common.errors import DataError
from pipelines.common.vlm import train
from pipelines.common.vlm.precision import LossScale, compute_dtype, norms_in_fp32

pytestmark = pytest.mark.usefixtures("one_thread")
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_a_gpu_without_bf16_computes_in_fp16(capability, dtype, monkeypatch):
    """A T4 has 7.5."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compute_dtype(CUDA) == dtype
    assert compute_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_fp16_with_its_norms_in_fp32_answers_as_in_fp32(family):
    """Also where its residuals are larger than fp16 can square."""
    vlm = make(family)
    batch = vlm.encoder.collate(vlm.encoder.encode([question(1)]))
    expected = torch.log_softmax(vlm.model(**batch).logits[0, -1].float(), -1)
    norms_in_fp32(vlm.model.half())
    norms = [module for module in vlm.model.modules() if "Norm" in type(module).__name__]
    assert norms
    assert {weight.dtype for norm in norms for weight in norm.parameters()} == {torch.float32}
    batch = {name: one.half() if torch.is_floating_point(one) else one for name, one in batch.items()}
    made = torch.log_softmax(vlm.model(**batch).logits[0, -1].float(), -1)
    torch.testing.assert_close(made, expected, atol=0.1, rtol=0.05)
    large = torch.full((1, next(iter(norms[-1].parameters())).shape[0]), 3e4, dtype=torch.float16)
    assert norms[-1](large).dtype == torch.float16
    assert torch.isfinite(norms[-1](large)).all()


@pytest.fixture
def scaled(monkeypatch):
    """The CPU's fp32 weights are trained as fp16 ones are."""
    monkeypatch.setattr(LossScale, "needed", classmethod(lambda cls, weights: cls()))


def test_the_scale_changes_no_step(tmp_path, monkeypatch):
    losses, weights = run(tmp_path / "plain", settings())
    monkeypatch.setattr(LossScale, "needed", classmethod(lambda cls, weights: cls()))
    again, scaled = run(tmp_path / "scaled", settings())
    assert again == losses  # a power of two changes no bit of a gradient
    assert all(torch.equal(weights[name], scaled[name]) for name in weights)


def test_a_step_that_overflows_is_skipped_and_a_resumed_run_knows_the_scale(tmp_path, scaled, monkeypatch):
    def overflows(step):
        plain = train._step

        def one(model, encoder, rows, number, *rest):
            done = plain(model, encoder, rows, number, *rest)
            if number == step:
                next(weight for weight in model.parameters() if weight.grad is not None).grad.fill_(float("inf"))
            return done

        return one

    monkeypatch.setattr(train, "_step", overflows(2))
    losses, weights = run(tmp_path / "whole", settings(save_steps=3))
    assert len(losses) == settings().steps
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", settings(save_steps=3), stop=4)
    state = train.read_json(tmp_path / "cut" / "step-000003" / "state.json")
    assert state["scale"] == [LossScale.START / 2, 0]
    again, resumed = run(tmp_path / "cut", settings(save_steps=3))
    assert again == losses
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_the_scale_grows_again_and_has_an_end():
    scale = LossScale(4.0, LossScale.LONGEST - 1)
    scale.stepped()
    assert scale.state() == [8.0, 0]
    assert "step 7: gradients overflowed float16" in scale.overflowed(7)
    scale.value = 1.0
    with pytest.raises(DataError, match="overflow float16 at any scale"):
        scale.overflowed(8)
