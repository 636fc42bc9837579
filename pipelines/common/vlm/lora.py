"""LoRA on a loaded model: which weights, and what a 4-bit base needs around it."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model

from pipelines.common.vlm.settings import LoraSettings

# Anchored at the names of Qwen2-VL in transformers 5, so that nothing is matched by chance.
LANGUAGE = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
VISION = r".*visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])|merger\.mlp\.[02])"


def put_lora(model: Any, settings: LoraSettings, *, gradient_checkpointing: bool) -> Any:
    """Returns `model` with LoRA in fp32 on it; only the adapter's weights want gradients.

    `prepare_model_for_kbit_training` is not used: it would bring everything that is not in 4 bits to fp32 (TRL #4335),
    here nearly two gigabytes. What of it is needed stands below.
    """
    for weight in model.parameters():
        weight.requires_grad_(False)
    targets = f"({LANGUAGE}|{VISION})" if settings.vision else LANGUAGE
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config, autocast_adapter_dtype=True)
    if gradient_checkpointing:
        # Not re-entrant: needs no input that wants a gradient, so no graph grows through a frozen tower.
        tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return tuned
