"""Loads a video VLM, from the hub or a folder, with or without 4 bits, with or without an adapter."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedConfig

from pipelines.common.errors import SetupError
from pipelines.common.vlm.dialogue import Question
from pipelines.common.vlm.encode import Encoder
from pipelines.common.vlm.families import FAMILIES, Family, by_model_type
from pipelines.common.vlm.precision import compute_dtype, norms_in_fp32
from pipelines.common.vlm.settings import Device, Quantization

# Kept out of 4 bits: the tower, whose errors an adapter on the language part cannot undo, and the head.
# Any list drops the library's own exclusion of `lm_head`, so it is named; plain "visual" would match nothing.
KEEP_WHOLE = [*dict.fromkeys(module for family in FAMILIES for module in family.tower), "lm_head"]

# Two lines that every load would print and nobody can act on: bitsandbytes misses a kernel that it would fetch from the
# hub and has another for, and PEFT reads an attribute by the name that transformers will drop.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


@dataclass(frozen=True)
class Vlm:
    """A model ready to answer, with what turns questions into its tensors."""

    model: Any
    encoder: Encoder
    device: torch.device


def pick_device(wanted: Device) -> torch.device:
    """`auto` takes a GPU where there is one; asking for a GPU that is not there is an error, never a silent CPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SetupError("no CUDA device is to be seen", cure="Run where `nvidia-smi` lists one, or set device = cpu.")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # with its number: each of several processes has its own


def load(
    name: str | Path, *, adapter: Path | None = None, quantization: Quantization = "none", device: Device = "auto"
) -> Vlm:
    """Loads `name` (hub name or folder) in evaluation mode; `adapter` is a PEFT folder put on top.

    Raises SetupError where the weights cannot be had, or are of a family that has no adapter.
    """
    place, family = pick_device(device), read_family(name)
    dtype = compute_dtype(place)
    options: dict[str, Any] = {"dtype": dtype, "low_cpu_mem_usage": True}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=KEEP_WHOLE,
        )
        options["device_map"] = {"": place}
    try:
        processor = AutoProcessor.from_pretrained(str(name))
        model: Any = AutoModelForImageTextToText.from_pretrained(str(name), **options)
    except (OSError, ValueError) as error:
        raise _not_to_be_had(name, error) from error
    keep_frame_size(processor)
    linear_patches(model)
    if place.type == "cpu":
        _answers_in_fp32(model)
    if dtype == torch.float16:
        norms_in_fp32(model)
    if quantization == "none":
        model = model.to(place)
    if adapter is not None:
        model = with_adapter(model, adapter)
    return Vlm(model.eval(), Encoder(processor, family), place)


def _answers_in_fp32(model: Any) -> None:
    """On processors with bf16 instructions bitsandbytes multiplies 4-bit weights in bf16 once a model answers, and in
    fp32 while it is trained and on all other processors: answers must not depend on the machine."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def linear_patches(model: Any) -> Any:
    """The same model, which makes its first features of patches by a matrix product instead of a convolution.

    Patches do not overlap, so both are one thing; the convolution in three dimensions took a tenth of a step on a CPU.
    Names and values of weights stay.
    """
    for module in model.modules():
        convolution = getattr(module, "proj", None)
        if isinstance(convolution, torch.nn.Conv3d) and convolution.kernel_size == convolution.stride:
            module.forward = partial(_project, convolution)
    return model


def _project(convolution: torch.nn.Conv3d, pixels: torch.Tensor) -> torch.Tensor:
    """(patches, values) or any shape of as many → (patches, features)."""
    weight = convolution.weight.flatten(1)
    return torch.nn.functional.linear(pixels.reshape(-1, weight.shape[1]).to(weight.dtype), weight, convolution.bias)


def read_family(name: str | Path) -> Family:
    """The adapter of a model by its configuration alone; SetupError where there is none, or no configuration."""
    try:
        config, _ = PreTrainedConfig.get_config_dict(str(name))
    except (OSError, ValueError) as error:
        raise _not_to_be_had(name, error) from error
    return by_model_type(config.get("model_type", "(none)"))


def _not_to_be_had(name: str | Path, error: Exception) -> SetupError:
    cure = "Set VLM to `tiny`, a folder that holds a model, or a hub name that can be reached (HF_HOME, HF_ENDPOINT)."
    return SetupError(f"the model cannot be loaded ({error})", file=str(name), cure=cure)


def with_adapter(model: Any, adapter: Path) -> Any:
    """Puts a PEFT folder on `model`, safetensors only: pickled weights can run code."""
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise SetupError("no adapter_model.safetensors here", file=adapter, cure="Materialise `adapter` first.")
    return PeftModel.from_pretrained(model, str(adapter))


def keep_frame_size(processor: Any) -> None:
    """Lets frames through at the size they come in: by default small ones are enlarged (224 → 336), at twice the cost.

    A processor whose own largest size is below ours (the embedded model's) keeps its size, and so does one that takes
    a single size (LLaVA's).
    """
    size = dict(processor.video_processor.size)
    if not {"shortest_edge", "longest_edge"} <= size.keys():
        return
    if size["shortest_edge"] != size["longest_edge"]:
        processor.video_processor.size = {**size, "shortest_edge": min(size["shortest_edge"], 56 * 56)}
    processor.video_processor.cap_pixels_per_frame = True


def frame_side(name: str | Path, size: int) -> int:
    """Pixels a side that the model `name` (hub name or folder) sees of frames of `size` × `size`, by its processor.

    Qwen's rounds to whole merged patches (28 or 32 pixels) and has a largest size; others have one size for all.
    SetupError where it takes no such frame, or cannot be had.
    """
    try:
        processor = AutoProcessor.from_pretrained(str(name))
    except (OSError, ValueError) as error:
        raise _not_to_be_had(name, error) from error
    keep_frame_size(processor)
    pair = Question((np.zeros((2, size, size, 3), np.uint8),), (0, 2), ((0, 1),), "")
    try:
        (row,) = Encoder(processor).encode([pair])
    except ValueError as error:
        what = f"it takes no frames of {size}×{size} pixels ({error})"
        raise SetupError(what, file=str(name), cure="Set [clip_format] size to a multiple of 28 or 32.") from error
    if row.grid is not None:
        return int(row.grid[0, 1]) * processor.video_processor.patch_size
    assert row.pixels is not None
    return row.pixels.shape[-1]


def cpu_threads(threads: int | None = None) -> None:
    """Sets torch's threads: small models run faster on few; `TORCH_THREADS` overrides."""
    torch.set_num_threads(int(os.environ.get("TORCH_THREADS") or threads or torch.get_num_threads()))
