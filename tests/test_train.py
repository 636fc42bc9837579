"""The training loop: it learns, it resumes exactly, accumulation equals a larger batch."""

import re
import time

import pytest
import torch
from toy_vlm import answer, make, question

from pipelines.common.errors import DataError
from pipelines.common.files import checkpoint_folder
from pipelines.common.vlm.load import with_adapter
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.settings import LoopSettings, LoraSettings
from pipelines.common.vlm.train import fit, saved_steps

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def rows_of(encoder, size: int):
    def rows(step: int):
        seeds = range(step * size, (step + 1) * size)
        return encoder.encode([question(s % 6) for s in seeds], [answer(s % 6).text() for s in seeds])

    return rows


def settings(**changes) -> LoopSettings:
    plain = {"steps": 6, "batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "save_steps": 2}
    return LoopSettings(**{**plain, **changes})


def trained(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def run(tmp_path, loop: LoopSettings, stop: int | None = None):
    vlm = make()
    model = put_lora(vlm.model, LoraSettings(rank=4, alpha=8), gradient_checkpointing=False)
    rows = rows_of(vlm.encoder, loop.batch_size * loop.gradient_accumulation_steps)

    def until(step: int):
        if step == stop:
            raise KeyboardInterrupt
        return rows(step)

    losses = fit(model, vlm.encoder, until, loop, tmp_path, device=CPU, progress=lambda line: None)
    return losses, trained(model)


def test_the_loss_falls(tmp_path):
    losses, _ = run(tmp_path, settings(steps=30, save_steps=30))
    assert losses[-1][1] < 0.85 * losses[0][1]


def test_an_interrupted_run_ends_as_an_undisturbed_one_bit_for_bit(tmp_path):
    losses, weights = run(tmp_path / "whole", settings())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", settings(), stop=5)
    again, resumed = run(tmp_path / "cut", settings())
    assert again == losses
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_accumulation_equals_one_larger_batch(tmp_path):
    _, small = run(tmp_path / "a", settings(batch_size=1, gradient_accumulation_steps=4))
    _, large = run(tmp_path / "b", settings(batch_size=4, gradient_accumulation_steps=1))
    for name in small:
        torch.testing.assert_close(small[name], large[name], atol=2e-4, rtol=1e-2)


def test_gradient_checkpointing_changes_no_loss(tmp_path):
    losses = []
    for checkpointing in (False, True):
        vlm = make()
        model = put_lora(vlm.model, LoraSettings(rank=4, alpha=8), gradient_checkpointing=checkpointing)
        out = tmp_path / str(checkpointing)
        losses.append(fit(model, vlm.encoder, rows_of(vlm.encoder, 2), settings(), out, device=CPU, progress=str))
    assert [loss for _, loss in losses[0]] == pytest.approx([loss for _, loss in losses[1]], rel=1e-4)


def test_only_the_newest_checkpoints_stay(tmp_path):
    run(tmp_path, settings(steps=6, save_steps=1, save_total_limit=2))
    assert [folder.name for folder in saved_steps(tmp_path)] == ["step-000005", "step-000006"]


def stop_with_checkpoint(out, key: str) -> None:
    with checkpoint_folder(out, key) as folder:
        (folder / "step-000001").mkdir(parents=True)
        raise KeyboardInterrupt


def test_checkpoints_of_other_settings_are_never_used(tmp_path):
    out = tmp_path / "adapter"
    for key in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            stop_with_checkpoint(out, key)
    assert [folder.name for folder in out.with_name("adapter.checkpoints").iterdir()] == ["b"]
    with checkpoint_folder(out, "b") as folder:
        assert saved_steps(folder)
    assert not folder.parent.exists()  # done: nothing is left to go on from


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    vlm = make()
    model = put_lora(vlm.model, LoraSettings(rank=4, alpha=8), gradient_checkpointing=False)
    with torch.no_grad():
        next(weight for weight in model.parameters() if weight.requires_grad).fill_(float("nan"))
    with pytest.raises(DataError, match="step 0"):
        fit(model, vlm.encoder, rows_of(vlm.encoder, 2), settings(), tmp_path, device=CPU, progress=str)


def test_the_adapter_is_a_plain_peft_folder(tmp_path):
    vlm = make()
    model = put_lora(vlm.model, LoraSettings(rank=4, alpha=8), gradient_checkpointing=False)
    fit(model, vlm.encoder, rows_of(vlm.encoder, 2), settings(), tmp_path / "steps", device=CPU, progress=str)
    model.save_pretrained(tmp_path / "adapter")
    batch = vlm.encoder.collate(vlm.encoder.encode([question(1)]))
    again = with_adapter(make().model, tmp_path / "adapter").eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(**batch).logits, again(**batch).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("slow", "starved"), [("rows", True), ("look", False)])
def test_waiting_for_samples_is_told_apart_from_looking_at_them(tmp_path, slow: str, starved: bool):
    vlm, told = make(), []
    model = put_lora(vlm.model, LoraSettings(rank=4, alpha=8), gradient_checkpointing=False)
    given = rows_of(vlm.encoder, 2)(0)

    def rows(step: int):
        time.sleep(0.5 if slow == "rows" else 0)
        return given

    def look(step: int, samples):
        time.sleep(0.5 if slow == "look" else 0)
        return samples

    loop = settings(steps=2)
    fit(model, vlm.encoder, rows, loop, tmp_path, device=CPU, progress=told.append, look=look)
    (share,) = re.findall(r"input wait (\d+)%", told[-1])
    assert (int(share) > 30) == starved
    assert starved or int(share) < 5
