"""Configs of published models, so that their memory can be told without a look at the hub.

Belongs here: sizes that `config.json` of each repository on huggingface.co says, as far as weights and activations
depend on them, and no others. Which families can be trained is `families`'; nothing is loaded from here.

That each makes a model with the published number of weights is held by tests/test_vram.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import LlavaNextVideoConfig, Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig


def qwen2_vl_2b() -> Qwen2VLConfig:
    return Qwen2VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
        tie_word_embeddings=True,
    )


def qwen2_5_vl_3b() -> Qwen2_5_VLConfig:
    text = {"vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36}
    return _qwen2_5_vl({**text, "num_attention_heads": 16, "num_key_value_heads": 2}, tied=True)


def qwen2_5_vl_7b() -> Qwen2_5_VLConfig:
    text = {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28}
    return _qwen2_5_vl({**text, "num_attention_heads": 28, "num_key_value_heads": 4}, tied=False)


def _qwen2_5_vl(text: dict[str, Any], tied: bool) -> Qwen2_5_VLConfig:
    """Both sizes have the same tower, but for the width that it gives."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    return Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**vision, "out_hidden_size": text["hidden_size"], "fullatt_block_indexes": [7, 15, 23, 31]},
        tie_word_embeddings=tied,
    )


def qwen3_vl_2b() -> Qwen3VLConfig:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        tie_word_embeddings=True,
    )


def llava_next_video_7b() -> LlavaNextVideoConfig:
    """Vicuna 7B, which has Llama's sizes, behind CLIP-L at 336 pixels."""
    text = {"vocab_size": 32_064, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return LlavaNextVideoConfig(
        text_config={"model_type": "llama", **text, "num_attention_heads": 32, "num_key_value_heads": 32},
        vision_config={"model_type": "clip_vision_model", **vision, "image_size": 336, "patch_size": 14},
        vision_feature_layer=-2,
        spatial_pool_stride=2,
        tie_word_embeddings=False,
    )


PUBLISHED: dict[str, Callable[[], Any]] = {
    "Qwen/Qwen2-VL-2B-Instruct": qwen2_vl_2b,
    "Qwen/Qwen2.5-VL-3B-Instruct": qwen2_5_vl_3b,
    "Qwen/Qwen2.5-VL-7B-Instruct": qwen2_5_vl_7b,
    "Qwen/Qwen3-VL-2B-Instruct": qwen3_vl_2b,
    "llava-hf/LLaVA-NeXT-Video-7B-hf": llava_next_video_7b,
}
