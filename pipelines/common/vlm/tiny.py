"""The embedded model: the real Qwen2-VL classes at a size that a laptop's CPU trains in minutes, built without a hub.

Only what differs from the published checkpoints stands here: sizes, and a tokenizer made on the spot. It has the 256
bytes, the special tokens of Qwen2-VL, one token for each number up to the frames of a clip, and one token for
each fixed phrase of the prompts, so that a clip costs about a hundred tokens instead of six hundred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count, takewhile
from typing import Any

import torch
from transformers import (
    AddedToken,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.vlm.settings import TinySettings

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_PHRASES = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")


def tokenizer(phrases: Sequence[str], frames: int = DEFAULT_FORMAT.frames) -> Qwen2Tokenizer:
    """Byte-level tokenizer in which each of `phrases` and each number up to `frames` is one token; any other text still
    works, byte by byte."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(bytes_to_unicode().values()))}
    made = Qwen2Tokenizer(vocab={**vocabulary, "<|endoftext|>": len(vocabulary)}, merges=[])
    made.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})  # pyright: ignore[reportArgumentType]
    added: list[str | AddedToken] = [
        AddedToken(text, normalized=False) for text in (*map(str, range(frames + 1)), *phrases)
    ]
    made.add_tokens(added)
    return made


def processor(phrases: Sequence[str], settings: TinySettings, frames: int = DEFAULT_FORMAT.frames) -> Qwen2VLProcessor:
    """For clips of `frames`: see `tokenizer`."""
    pixels = settings.image**2
    size = {"shortest_edge": pixels, "longest_edge": pixels}
    video = Qwen2VLVideoProcessor(size=size, patch_size=settings.patch, cap_pixels_per_frame=True)
    image = Qwen2VLImageProcessor(size=size, patch_size=settings.patch)
    return Qwen2VLProcessor(image, tokenizer(phrases, frames), video, chat_template=CHAT_TEMPLATE)


def model(words: Qwen2Tokenizer, settings: TinySettings) -> Qwen2VLForConditionalGeneration:
    """An untrained model for the tokenizer `words`; seed torch before the call."""
    head = settings.hidden // settings.heads // 2
    sections = [head - 2 * (head // 3), head // 3, head // 3]  # of the rotary halves: time, height, width
    ids: dict[str, Any] = words.get_vocab()
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": settings.hidden,
            "intermediate_size": settings.hidden * 3,
            "num_hidden_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "num_key_value_heads": settings.heads // 2,
            "initializer_range": settings.initial,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": settings.vision_layers,
            "embed_dim": settings.vision_hidden,
            "hidden_size": settings.hidden,
            "num_heads": settings.heads,
            "mlp_ratio": 3,
            "initializer_range": settings.initial,
            "patch_size": settings.patch,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    made = Qwen2VLForConditionalGeneration(config)
    numbers = takewhile(ids.__contains__, map(str, count()))
    _order_numbers(made.model.language_model.embed_tokens.weight, [ids[number] for number in numbers])
    return made


def _order_numbers(embeddings: torch.Tensor, rows: list[int]) -> None:
    """Starts the number tokens as sines of their value, so that near numbers are alike.

    A large model has learned from text that 46 lies between 40 and 50; this one will read a few minutes of prompts.
    """
    width = embeddings.shape[1] // 2
    periods = torch.logspace(math.log10(6), math.log10(4 * len(rows)), width)
    angles = 2 * math.pi * torch.arange(len(rows))[:, None] / periods
    with torch.no_grad():
        scale = embeddings.std() * math.sqrt(2)
        embeddings[rows] = scale * torch.cat([angles.sin(), angles.cos()], 1).to(embeddings.dtype)
