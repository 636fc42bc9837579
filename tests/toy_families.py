"""Every family of models at toy size: its real model and processor classes, random weights, built without a hub.

Chat templates do what the published ones do with text and videos; nothing else of them matters here.
"""

from typing import Any

import torch
from toy_vlm import PHRASES
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.llava_next_video.video_processing_llava_next_video import LlavaNextVideoVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from pipelines.common.vlm import tiny
from pipelines.common.vlm.encode import Encoder
from pipelines.common.vlm.load import Vlm, keep_frame_size
from pipelines.common.vlm.settings import TinySettings

# 64 wide: one block of 4-bit weights; narrower ones bitsandbytes cannot run on a CPU
WIDE, HEADS = 64, 4
TEXT = {
    "hidden_size": WIDE,
    "intermediate_size": 2 * WIDE,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS // 2,
    "initializer_range": 0.2,  # loud, so that a wrong input cannot hide below a tolerance
    "max_position_embeddings": 2048,
}
EYES = {"depth": 2, "num_heads": 2, "initializer_range": 0.2}

# as published: all videos before all text
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def qwen2_vl() -> tuple[Any, Any]:
    size = TinySettings(image=56, patch=14, hidden=WIDE, layers=2, heads=HEADS, vision_hidden=32, vision_layers=2)
    processor = tiny.processor(PHRASES, size.model_copy(update={"initial": 0.2}))
    return tiny.model(processor.tokenizer, size.model_copy(update={"initial": 0.2})), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    words = tiny.tokenizer(PHRASES)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    vision = {**EYES, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": WIDE, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, **_vocabulary(words), "rope_parameters": rope}, vision_config=vision, **_marks(words)
    )
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(), words, Qwen2VLVideoProcessor(), chat_template=tiny.CHAT_TEMPLATE
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    words = tiny.tokenizer(PHRASES)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {**TEXT, **_vocabulary(words), "rope_parameters": rope, "head_dim": WIDE // HEADS}
    vision = {
        **EYES,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": WIDE,
        "num_position_embeddings": 16,
    }
    config = Qwen3VLConfig(text_config=text, vision_config={**vision, "deepstack_visual_indexes": [0]}, **_marks(words))
    images = Qwen2VLImageProcessor(patch_size=16)
    processor = Qwen3VLProcessor(images, words, Qwen3VLVideoProcessor(), chat_template=tiny.CHAT_TEMPLATE)
    return Qwen3VLForConditionalGeneration(config), processor


def llava_next_video(image: int = 56) -> tuple[Any, Any]:
    words = _llama_words()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,  # the last one's output is not taken
        num_attention_heads=2,
        image_size=image,
        patch_size=14,
        initializer_factor=5.0,
    )
    text = LlamaConfig(**TEXT, vocab_size=len(words), pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id)
    ids = words.get_vocab()
    config = LlavaNextVideoConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
    )
    size = {"shortest_edge": image}, {"height": image, "width": image}
    processor = LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(size=size[0], crop_size=size[1]),
        image_processor=LlavaNextImageProcessor(size=size[0], crop_size=size[1]),
        tokenizer=words,
        chat_template=LLAVA_TEMPLATE,
        patch_size=14,
        vision_feature_select_strategy="default",
    )
    return LlavaNextVideoForConditionalGeneration(config), processor


FAMILIES = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "llava_next_video": llava_next_video,
}


def make(family: str) -> Vlm:
    """A model of the family, ready to answer; the same weights each time."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    keep_frame_size(processor)
    return Vlm(model.eval(), Encoder(processor), torch.device("cpu"))


def _llama_words() -> LlamaTokenizer:
    """Llama's class on single characters and bytes, with its habit of putting a space before any text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    words = LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    words.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<image>", "<video>"]})  # pyright: ignore[reportArgumentType]
    return words


def _vocabulary(words: Any) -> dict[str, Any]:
    ids = words.get_vocab()
    return {"vocab_size": len(words), "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}


def _marks(words: Any) -> dict[str, int]:
    ids = words.get_vocab()
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    ends = {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: ids[f"<|{name}|>"] for key, name in {**names, **ends}.items()}
