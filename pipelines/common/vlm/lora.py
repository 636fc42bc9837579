"""LoRA on a loaded model: which weights, and what a 4-bit base needs around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model

from pipelines.common.files import read_json
from pipelines.common.vlm.families import by_model_type
from pipelines.common.vlm.settings import LoraSettings

# Anchored at the names in transformers 5, the same in all families, so that nothing is matched by chance.
LANGUAGE = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"


def put_lora(
    model: Any,
    settings: LoraSettings,
    *,
    gradient_checkpointing: bool,
    use_reentrant: bool = False,
    input_require_grads: bool = False,
) -> Any:
    """Returns `model` with LoRA in fp32 on it; only the adapter's weights want gradients.

    `prepare_model_for_kbit_training` is not used: it would bring everything that is not in 4 bits to fp32 (TRL #4335),
    here nearly two gigabytes. What of it is needed stands below. Re-entrant checkpointing finds no gradient to compute
    unless the inputs want one: ValueError without `input_require_grads`.
    """
    if gradient_checkpointing and use_reentrant and not input_require_grads:
        raise ValueError("re-entrant checkpointing gives no gradients without input_require_grads")
    for weight in model.parameters():
        weight.requires_grad_(False)
    vision = by_model_type(model.config.model_type).vision_targets(model.config) if settings.vision else None
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=f"({LANGUAGE}|{vision})" if vision else LANGUAGE,
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config, autocast_adapter_dtype=True)
    if gradient_checkpointing:
        tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if input_require_grads:
        tuned.enable_input_require_grads()
    return tuned


def read_lora(adapter: Path) -> LoraSettings:
    """The settings that a PEFT folder was made with by `put_lora`; DataError where it holds no configuration."""
    config = read_json(adapter / "adapter_config.json")
    vision = config["target_modules"] != LANGUAGE
    return LoraSettings(rank=config["r"], alpha=config["lora_alpha"], dropout=config["lora_dropout"], vision=vision)
