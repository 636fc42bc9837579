"""Out of memory while training: the step is done again in smaller parts, and ends as if they had been asked for."""

import pytest
import torch
from test_train import CPU, rows_of, settings, trained
from toy_vlm import make

from pipelines.common.errors import SetupError
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.settings import LoopSettings, LoraSettings
from pipelines.common.vlm.train import fit

LORA = LoraSettings(rank=4, alpha=8, dropout=0.1)  # with dropout, so that a repeated step must repeat its dice too
FOUR = {"batch_size": 4, "gradient_accumulation_steps": 2, "steps": 4, "save_steps": 1}


class SmallCard:
    """Makes a forward pass with more than `clips` samples fail from the `after`-th call on, in its last layer."""

    def __init__(self, model, clips: int, after: int = 0) -> None:
        self.clips, self.left = clips, after
        model.base_model.model.model.language_model.layers[-1].register_forward_hook(self)

    def __call__(self, layer, inputs, output) -> None:
        self.left -= 1
        if self.left < 0 and output.shape[0] > self.clips:
            raise torch.OutOfMemoryError("CUDA out of memory")


def run(out, loop: LoopSettings, clips: int | None = None, after: int = 0, stop: int | None = None):
    torch.set_num_threads(1)
    vlm = make()
    model = put_lora(vlm.model, LORA, gradient_checkpointing=False)
    if clips is not None:
        SmallCard(model, clips, after)
    rows, said = rows_of(vlm.encoder, loop.batch_size * loop.gradient_accumulation_steps), []

    def until(step: int):
        if step == stop:
            raise KeyboardInterrupt
        return rows(step)

    losses = fit(model, vlm.encoder, until, loop, out, device=CPU, progress=said.append, when_full="Set this, or that.")
    return losses, trained(model), said


def test_the_step_is_repeated_with_half_and_the_run_ends_as_one_that_began_so(tmp_path):
    losses, weights, said = run(tmp_path / "card", settings(**FOUR), clips=2)
    halves = settings(**FOUR | {"batch_size": 2, "gradient_accumulation_steps": 4})
    expected, wanted, _ = run(tmp_path / "halves", halves)
    assert losses == expected
    assert all(torch.equal(weights[name], wanted[name]) for name in weights)
    (line,) = [line for line in said if "out of memory" in line]
    assert line == "step 0: out of memory, goes on with micro-batches of 2, 4 a step"


def test_a_part_that_was_done_before_it_happened_counts_once(tmp_path):
    """The second micro-batch of step 0 fails, when the first has left its gradients already."""
    losses, weights, _ = run(tmp_path / "card", settings(**FOUR), clips=2, after=1)
    expected, wanted, _ = run(tmp_path / "small", settings(**FOUR), clips=2)
    assert losses == expected
    assert all(torch.equal(weights[name], wanted[name]) for name in weights)


def test_a_resumed_run_keeps_to_what_fitted(tmp_path):
    losses, weights, _ = run(tmp_path / "whole", settings(**FOUR), clips=1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", settings(**FOUR), clips=1, stop=2)
    again, resumed, said = run(tmp_path / "cut", settings(**FOUR), clips=1)
    assert "with micro-batches of 1" in said[0]
    assert not any("out of memory" in line for line in said)
    assert again == losses
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_a_single_clip_that_does_not_fit_says_what_to_change(tmp_path):
    with pytest.raises(SetupError, match="single clip on the device") as error:
        run(tmp_path, settings(**FOUR), clips=0)
    assert error.value.cure.startswith("Set this, or that. With the same settings the next run goes on")
