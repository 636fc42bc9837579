"""Whether a training or an evaluation fits the GPU, asked before weights are read. On a CPU nothing is asked.

Belongs here: the GPU's free memory, the refusal and what to change. The estimate itself is `vram`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig

from pipelines.common.errors import SetupError
from pipelines.common.vlm.activations import Step
from pipelines.common.vlm.load import pick_device, read_family
from pipelines.common.vlm.settings import Device, LoraSettings, Quantization
from pipelines.common.vlm.vram import GB, Estimate, Parts, count_weights, estimate, markdown_table

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What of a training decides how much memory it takes."""

    lora: LoraSettings
    quantization: Quantization
    step: Step
    accumulation: int
    what: str = "the training"

    def estimate(self, config: Any) -> Estimate:
        """Of a training with `config`; SetupError for a family whose sizes are not known."""
        return estimate(config, count_weights(config, self.lora, self.quantization), self.step)

    def smaller(self) -> Iterable[tuple[str, Plan]]:
        """Smaller plans, each on top of the one before: first what changes no result, then what costs least of it."""
        return _smaller(self)


class AnyPlan(Protocol):
    """Work whose memory can be estimated and made smaller: a `Plan`, or an `answer_vram.AnswerPlan`."""

    @property
    def what(self) -> str: ...

    def estimate(self, config: Any) -> Parts: ...

    def smaller(self) -> Iterable[tuple[str, AnyPlan]]: ...


@dataclass(frozen=True)
class Card:
    """A GPU with the bytes that are free now and that it has for programs."""

    name: str
    free: int
    total: int


def require_room(name: str | Path, plan: AnyPlan, device: Device, say: Say) -> None:
    """Returns where the work fits the free memory of its GPU, or runs on a CPU; says what it will take.

    `name` is a folder or hub name, whose config is all that is read. SetupError where the GPU is missing, busy or too
    small, with the parts of the estimate and what to change.
    """
    place = pick_device(device)
    if place.type != "cuda":
        return
    read_family(name)
    free, total = torch.cuda.mem_get_info(place)
    refuse(AutoConfig.from_pretrained(str(name)), plan, Card(torch.cuda.get_device_name(place), free, total), say)


def refuse(config: Any, plan: AnyPlan, card: Card, say: Say) -> None:
    """SetupError where `plan` does not fit what is free of `card`."""
    made = plan.estimate(config)
    if made.fits(card.free):
        say(f"{plan.what}: {made.total / GB:.1f} GB estimated, {card.free / GB:.1f} GB free on {card.name}")
        return
    table = markdown_table({plan.what: made}, card.free, card.name)
    what = (
        f"{plan.what} takes about {made.total / GB:.1f} GB, and of {card.name} {card.free / GB:.1f} of "
        f"{card.total / GB:.1f} GB are free\n\n{table}\n"
    )
    if made.fits(card.total):
        cure = "Another process holds the rest: end it (`nvidia-smi` names it), or wait until it has ended."
        raise SetupError(f"the GPU is busy: {what}", cure=cure)
    raise SetupError(f"the GPU is too small: {what}", cure=what_to_change(config, plan, card.total))


def what_to_change(config: Any, plan: AnyPlan, card: int) -> str:
    """The first settings that make it fit a GPU of `card` bytes, in the order of `smaller`; of one setting that is
    changed again only the last value is named."""
    changed: dict[str, str] = {}
    for words, smaller in plan.smaller():
        changed[words.partition("=")[0]] = words
        if (made := smaller.estimate(config)).fits(card):
            return f"Set {', '.join(changed.values())}: about {made.total / GB:.1f} GB."
    return "No setting makes it fit: take a smaller model or a larger GPU."


def left_to_change(plan: Plan) -> str:
    """What is left to make a training smaller whose single clip did not fit after all, in the order of `_smaller`."""
    single = replace(plan, step=replace(plan.step, batch_size=1))
    changes = [words for words, _ in _smaller(single)]
    larger = "take a smaller model or a larger GPU."
    return f"Set {', then '.join(changes)}, or {larger}" if changes else f"No setting is left: {larger}"


def _smaller(plan: Plan) -> Iterator[tuple[str, Plan]]:
    if not plan.step.gradient_checkpointing:
        plan = replace(plan, step=replace(plan.step, gradient_checkpointing=True))
        yield "`[finetune] gradient_checkpointing = true`", plan
    if plan.step.batch_size > 1:
        accumulation = plan.accumulation * plan.step.batch_size
        plan = replace(plan, step=replace(plan.step, batch_size=1), accumulation=accumulation)
        yield f"`[finetune.loop] batch_size = 1, gradient_accumulation_steps = {accumulation}`", plan
    if plan.quantization == "none":
        plan = replace(plan, quantization="nf4")
        yield '`[finetune] quantization = "nf4"`', plan
    if plan.step.optimiser == "adamw":
        plan = replace(plan, step=replace(plan.step, optimiser="adamw_8bit"))
        yield '`[finetune.loop] optimiser = "adamw_8bit"`', plan
    if plan.lora.vision:
        plan = replace(plan, lora=plan.lora.model_copy(update={"vision": False}))
        yield "`[finetune.lora] vision = false`", plan
