"""`python -m pipelines.openpack.vram`: which published model fits which preset's GPU, and what else has to be set.

Belongs here: what a preset means for memory, and the table of models and presets. The estimate is `common.vlm.vram`'s,
what to change `common.vlm.room`'s.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.console import run
from pipelines.common.vlm.activations import Step
from pipelines.common.vlm.answer_vram import AnswerPlan
from pipelines.common.vlm.published import PUBLISHED
from pipelines.common.vlm.room import AnyPlan, Plan, what_to_change
from pipelines.common.vlm.settings import LoraSettings
from pipelines.common.vlm.vram import CARDS, GB, markdown_table
from pipelines.openpack.settings import EvaluationSettings, FinetuneSettings, load_settings

# the GPU that each preset of a full-size training is for; one a process, so two of them are as one
PRESET_CARDS = {"t4": "T4", "t4x2": "T4", "a100": "A100 40 GB", "h100": "H100 80 GB"}


def plan_of(settings: FinetuneSettings, side: int = DEFAULT_FORMAT.size) -> Plan:
    """What of the settings decides how much memory one process takes; the model sees `side` × `side` pixels."""
    loop = settings.loop
    step = Step(
        loop.batch_size, image=side, gradient_checkpointing=settings.gradient_checkpointing, optimiser=loop.optimiser
    )
    return Plan(settings.lora, settings.quantization, step, loop.gradient_accumulation_steps)


def answer_plan_of(settings: EvaluationSettings, lora: LoraSettings) -> AnswerPlan:
    """What decides how much memory an evaluation takes of an adapter that was trained with `lora`."""
    return AnswerPlan(lora, settings.quantization, settings.batch_size, settings.hypotheses)


def preset_table() -> str:
    """Markdown: GB (10⁹ bytes) that a training of each published model takes with each preset; below it, what to change
    where it is a no."""
    return _table({preset: plan_of(load_settings(preset=preset).finetune) for preset in PRESET_CARDS})


def answer_table() -> str:
    """The same of an evaluation."""
    settings = {preset: load_settings(preset=preset) for preset in PRESET_CARDS}
    return _table({preset: answer_plan_of(one.evaluation, one.finetune.lora) for preset, one in settings.items()})


def answer_parts() -> str:
    """Markdown: the parts of an evaluation with the preset `t4`, for each published model."""
    settings = load_settings(preset="t4")
    plan = answer_plan_of(settings.evaluation, settings.finetune.lora)
    return markdown_table({name.rpartition("/")[2]: plan.estimate(of()) for name, of in PUBLISHED.items()})


def _table(plans: Mapping[str, AnyPlan]) -> str:
    heads = [f"`{preset}`, {CARDS[card] / GB:.1f} GB" for preset, card in PRESET_CARDS.items()]
    lines = [["", *heads], ["---", *["---:"] * len(heads)]]
    changes = []
    for name, published in PUBLISHED.items():
        config, short = published(), name.rpartition("/")[2]
        cells = []
        for preset, plan in plans.items():
            made, card = plan.estimate(config), CARDS[PRESET_CARDS[preset]]
            cells.append(f"{made.total / GB:.1f}" if made.fits(card) else f"**no**, {made.total / GB:.1f}")
            if not made.fits(card):
                changes.append(f"- {short} with `{preset}`: {what_to_change(config, plan, card)}")
        lines.append([short, *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n" + "\n".join(changes)


def main() -> None:
    print(f"Training\n\n{preset_table()}\n\nEvaluation\n\n{answer_table()}\n\n{answer_parts()}")


if __name__ == "__main__":
    run(main)
