"""How much GPU memory answering takes: the model, a batch of prompts and the sequences that follow them.

Belongs here: the estimate of scoring as `score` does it. That of a training (`vram`) and what is done about one that
does not fit (`room`) do not.

    total = weights + adapter + batch · (prompt + sequences) · cache of a token + transient + dequantised + context

The transient part is the largest of what is there at once on top of that: one layer's activations while the prompts are
run, the tower's for one clip at a time, or the logits of the last tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from pipelines.common.vlm.activations import PAIR, Step, tower_of
from pipelines.common.vlm.settings import LoraSettings, Quantization
from pipelines.common.vlm.vram import CONTEXT, Parts, count_weights

# Bytes a token in a layer, of each unit of its width: a gated MLP whose linears have adapters in fp32; or attention,
# with keys and values repeated for every head; and the hidden states around them. Counted, as in `activations`.
LAYER_MLP, LAYER_HEADS, LAYER_WIDTH = 16, 16, 4
WRITTEN = 2  # tokens of each stretch of an answer: its letter and the phrase after it


@dataclass(frozen=True)
class AnswerEstimate(Parts):
    """Bytes by part."""

    weights_4bit: int
    weights_bf16: int
    adapter: int
    prompts: int  # keys and values, held once a clip
    sequences: int  # keys and values of what is written after the prompts
    transient: int
    dequantised: int
    context: int

    def columns(self) -> dict[str, int]:
        return {
            "4-bit": self.weights_4bit,
            "bf16": self.weights_bf16,
            "adapter": self.adapter,
            "prompts": self.prompts,
            "sequences": self.sequences,
            "transient": self.transient,
            "dequantised": self.dequantised,
            "context": self.context,
        }


def estimate_answers(
    config: Any, lora: LoraSettings, quantization: Quantization, batch_size: int, hypotheses: int
) -> AnswerEstimate:
    """Peak memory of answering a batch of clips with an adapter; SetupError for an unknown family."""
    weights, step = count_weights(config, lora, quantization), Step(batch_size, answer_tokens=0)
    tower, sizes = tower_of(config, step), config.get_text_config()
    width, mlp, heads = sizes.hidden_size, sizes.intermediate_size, sizes.num_attention_heads
    head = getattr(sizes, "head_dim", None) or width // heads
    stretches = math.ceil(step.frames / PAIR)
    prompt = batch_size * (tower.tokens + step.instruction_tokens + stretches * step.line_tokens)
    written = batch_size * stretches * WRITTEN * hypotheses
    token = 4 * sizes.num_key_value_heads * head  # a key and a value in two bytes, in each layer
    layer = prompt * max(LAYER_MLP * mlp, LAYER_HEADS * heads * head) + prompt * LAYER_WIDTH * width
    logits = 4 * batch_size * hypotheses * sizes.vocab_size  # those before are there until the next are
    return AnswerEstimate(
        weights_4bit=weights.quantised,
        weights_bf16=weights.whole,
        adapter=4 * weights.lora,
        prompts=prompt * token * sizes.num_hidden_layers,
        # while tokens are added to a layer, it is there twice
        sequences=written * token * sizes.num_hidden_layers + (prompt + written) * token,
        transient=max(layer, logits, tower.patches * tower.looked),
        dequantised=2 * weights.largest,
        context=CONTEXT,
    )


@dataclass(frozen=True)
class AnswerPlan:
    """What of an evaluation decides how much memory it takes."""

    lora: LoraSettings
    quantization: Quantization
    batch_size: int
    hypotheses: int
    what: str = "the evaluation"

    def estimate(self, config: Any) -> AnswerEstimate:
        return estimate_answers(config, self.lora, self.quantization, self.batch_size, self.hypotheses)

    def smaller(self) -> list[tuple[str, AnswerPlan]]:
        """Smaller plans, each on top of the one before: first what changes no answer."""
        plans, plan = [], self
        while plan.batch_size > 1:
            plan = replace(plan, batch_size=plan.batch_size // 2)
            plans.append((f"`[evaluation] batch_size = {plan.batch_size}`", plan))
        if plan.quantization == "none":
            plan = replace(plan, quantization="nf4")
            plans.append(('`[evaluation] quantization = "nf4"`', plan))
        return plans
