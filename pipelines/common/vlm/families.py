"""What differs between families of video models, one small adapter each, chosen by `model_type` of a model's config.

Belongs here: how pairs of frames and their lines stand in a chat, what of a processor's output a model takes in and in
which form, how kept features of the vision tower go back in, and which weights are the tower's. Batches (`encode`),
weights (`load`) and LoRA (`lora`) are the same for all and do not.

True frame numbers go into the prompt as the line before each pair, in every family. None of them has a clock that
could do it: Qwen2-VL counts pairs, Qwen2.5-VL spaces them evenly inside a video, Qwen3-VL writes times rounded to a
tenth of a second (two frames and a half), LLaVA-NeXT-Video has nothing. tests/test_families.py holds these, and
tests/frame_numbers.py trains toy models with and without the line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import __version__ as transformers_version
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from pipelines.common.errors import SetupError
from pipelines.common.vlm.dialogue import Question, frame_lines

Tensors = Sequence[torch.Tensor]


class Family(ABC):
    """An adapter. It holds no state: everything about a model comes in with its processor, config or tensors."""

    model_type: ClassVar[str]
    names: ClassVar[tuple[str, ...]]  # published models, for messages
    processor: ClassVar[str]  # name of the class that `AutoProcessor` gives
    end: ClassVar[str]  # the token that ends an answer
    tower: ClassVar[tuple[str, ...]]  # modules of the vision side, kept out of 4 bits

    def ids(self, tokenizer: Any, text: str) -> list[int]:
        """Tokens of text that goes on after other text."""
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    @abstractmethod
    def content(self, question: Question, processor: Any) -> list[dict[str, Any]]:
        """What the user's message holds, in the form that chat templates take."""

    def options(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What else the processor is told about the videos; frames are chosen already."""
        return {"do_sample_frames": False}

    @abstractmethod
    def pixels(self, made: Any, counts: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Pixels, and the grid where there is one, of each question; `counts` are their numbers of videos."""

    @abstractmethod
    def places(self, kinds: torch.Tensor, mask: torch.Tensor, grids: Tensors) -> dict[str, torch.Tensor]:
        """What tells a model the positions of a batch's tokens; `kinds` and `mask` (batch, length)."""

    @abstractmethod
    def look(self, model: Any, pixels: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
        """The tower's output for one question, a row a token."""

    def pairs(self, pixels: torch.Tensor, grid: torch.Tensor | None) -> list[torch.Tensor]:
        """The pixels of each pair of frames of one question, as `look` takes them for it alone; a pair is a row of
        `grid` where there is one."""
        if grid is None:
            return list(pixels.split(1))
        return list(pixels.split(grid.prod(-1).tolist()))

    def seen(self, features: Tensors) -> dict[str, Any]:
        """Outputs of `look`, one a question, as `mm_encoder_outputs`."""
        return {"video": BaseModelOutputWithPooling(pooler_output=tuple(features))}  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def vision_targets(self, config: Any) -> str:
        """Regular expression for the tower's linears that LoRA can train: those that the loss depends on."""


class Qwen2VL(Family):
    """Two frames a patch, 72 tokens a frame of 336×336. The default."""

    model_type = "qwen2_vl"
    names = ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct")
    processor = "Qwen2VLProcessor"
    end = "<|im_end|>"
    tower = ("model.visual",)

    def content(self, question: Question, processor: Any) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        for line in frame_lines(question.bounds, question.pairs):
            content += [{"type": "text", "text": line}, {"type": "video"}]
        return [*content, {"type": "text", "text": question.text}]

    def pixels(self, made: Any, counts: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        grids = torch.as_tensor(made["video_grid_thw"]).split(list(counts))
        patches = torch.as_tensor(made["pixel_values_videos"]).split([int(grid.prod(-1).sum()) for grid in grids])
        return list(zip(patches, grids, strict=True))

    def places(self, kinds: torch.Tensor, mask: torch.Tensor, grids: Tensors) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": kinds, "video_grid_thw": torch.cat(list(grids))}

    def look(self, model: Any, pixels: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
        return torch.cat(model.get_video_features(pixels, grid).pooler_output)

    def vision_targets(self, config: Any) -> str:
        return r".*visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])|merger\.mlp\.[02])"


class Qwen25VL(Qwen2VL):
    """As Qwen2-VL. Its `second_per_grid_ts` spaces the pairs inside a video; here each pair is a video, so it says
    nothing and is left out."""

    model_type = "qwen2_5_vl"
    names = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct")
    processor = "Qwen2_5_VLProcessor"

    def vision_targets(self, config: Any) -> str:
        return r".*visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)|merger\.mlp\.[02])"


class Qwen3VL(Qwen2VL):
    """Two frames a patch of 16×16: 336×336 becomes 320×320, 50 tokens a frame. Its processor writes a time before each
    pair, from true frame numbers; the line stays, since it also says which stretch the pair stands for."""

    model_type = "qwen3_vl"
    names = ("Qwen/Qwen3-VL-2B-Instruct",)
    processor = "Qwen3VLProcessor"

    def content(self, question: Question, processor: Any) -> list[dict[str, Any]]:
        # The bare token, since the processor puts marks around each pair itself: a template's would come twice.
        lines = frame_lines(question.bounds, question.pairs)
        text = "".join(f"{line}{processor.video_token}" for line in lines)
        return [{"type": "text", "text": text + question.text}]

    def options(self, questions: Sequence[Question]) -> dict[str, Any]:
        shown = [
            {"total_num_frames": one.bounds[-1], "fps": one.fps, "frames_indices": list(pair)}
            for one in questions
            for pair in one.pairs
        ]
        return {"do_sample_frames": False, "video_metadata": shown}

    def look(self, model: Any, pixels: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
        """(tokens, 1 + layers, hidden): what goes in with the text, and what is added after the first layers."""
        output = model.get_video_features(pixels, grid)
        parts = [output.pooler_output, *output.deepstack_features]
        return torch.stack([torch.cat(part) for part in parts], 1)

    def seen(self, features: Tensors) -> dict[str, Any]:
        first, *deeper = zip(*(one.unbind(1) for one in features), strict=True)
        return {"video": BaseModelOutputWithDeepstackFeatures(pooler_output=first, deepstack_features=deeper)}  # pyright: ignore[reportArgumentType]

    def vision_targets(self, config: Any) -> str:
        mergers = r"(merger|deepstack_merger_list\.\d+)\.linear_fc[12]"
        return rf".*visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])|{mergers})"


class LlavaNextVideo(Family):
    """Every frame for itself: 144 tokens, whatever its size. One number a position, as in Llama."""

    model_type = "llava_next_video"
    names = ("llava-hf/LLaVA-NeXT-Video-7B-hf",)
    processor = "LlavaNextVideoProcessor"
    end = "</s>"
    tower = ("model.vision_tower", "model.multi_modal_projector")

    def ids(self, tokenizer: Any, text: str) -> list[int]:
        # Llama's tokenizer puts a space before any text. After a line break, a token of its own, it puts none.
        before = super().ids(tokenizer, "\n")
        return super().ids(tokenizer, f"\n{text}")[len(before) :]

    def content(self, question: Question, processor: Any) -> list[dict[str, Any]]:
        # One text, since its template would put all videos before all text: no line would stand beside its pair.
        lines = frame_lines(question.bounds, question.pairs)
        text = "".join(f"{line}{processor.video_token}\n" for line in lines)
        return [{"type": "text", "text": text + question.text}]

    def pixels(self, made: Any, counts: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        videos = torch.stack(list(made["pixel_values_videos"]))
        return [(part, None) for part in videos.split(list(counts))]

    def places(self, kinds: torch.Tensor, mask: torch.Tensor, grids: Tensors) -> dict[str, torch.Tensor]:
        # Llama counts from the left edge, padding too; whoever goes on after a prompt could not know how much it was.
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

    def look(self, model: Any, pixels: torch.Tensor, grid: torch.Tensor | None) -> torch.Tensor:
        return model.get_video_features(pixels).pooler_output.flatten(0, 1)

    def vision_targets(self, config: Any) -> str:
        taken = config.vision_feature_layer  # layers after it are computed for nothing: no gradient would come there
        used = range(config.vision_config.num_hidden_layers + 1 + taken if taken < 0 else taken)
        layers = rf"layers\.({'|'.join(map(str, used))})\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
        return rf".*(vision_tower\..*{layers}|multi_modal_projector\.linear_[12])"


FAMILIES: tuple[Family, ...] = (Qwen2VL(), Qwen25VL(), Qwen3VL(), LlavaNextVideo())

VIDEOLLAMA2 = ("videollama2", "videollama2_mistral", "videollama2_mixtral", "videollama2_qwen2")


def by_model_type(model_type: str) -> Family:
    """The adapter for a config's `model_type`; SetupError for one that has none, with those that have."""
    for one in FAMILIES:
        if one.model_type == model_type:
            return one
    known = "; ".join(f"{one.model_type} ({', '.join(one.names)})" for one in FAMILIES)
    if model_type in VIDEOLLAMA2:
        what = f"VideoLLaMA2 ({model_type}) does not run on transformers {transformers_version}"
        needs = "It needs its own package videollama2, pinned to transformers 4.42.3, torch 2.2.0 and numpy 1.24.4: an"
        raise SetupError(what, cure=f"{needs} environment and training scripts of its own. Known here: {known}.")
    raise SetupError(f"no adapter for models of the type {model_type}", cure=f"Take one of: {known}.")


def by_processor(processor: Any) -> Family:
    """The adapter for the class of a processor; SetupError for one that has none."""
    name = type(processor).__name__
    for one in FAMILIES:
        if one.processor == name:
            return one
    known = ", ".join(one.processor for one in FAMILIES)
    raise SetupError(f"no adapter for the processor {name}", cure=f"Take a model whose processor is one of: {known}.")
