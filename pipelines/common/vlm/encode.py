"""Questions and answers as tensors, with the model's own processor and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from pipelines.common.vlm.dialogue import Question, frame_lines

IGNORED = -100  # a label that no loss counts


@dataclass(frozen=True)
class Encoded:
    """One question (and answer) in tokens.

    ids, kinds: token ids and their kinds (0 text, 2 video), equally long; the first `prompt` of them are the question.
    pixels: (patches, patch values) of all its videos, or None once `features` (tokens, hidden), the vision tower's
    output, stands in for them. grid: (videos, 3) patches in time, height and width.
    """

    ids: list[int]
    kinds: list[int]
    prompt: int
    grid: torch.Tensor
    pixels: torch.Tensor | None
    features: torch.Tensor | None = None

    def with_features(self, features: torch.Tensor) -> Encoded:
        return replace(self, pixels=None, features=features)


class Encoder:
    """Encodes for one model; `processor` is what `AutoProcessor` gives for it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode(self, questions: Sequence[Question], answers: Sequence[str] | None = None) -> list[Encoded]:
        """Tokens of each question, followed by its answer and the end token where answers are given."""
        chats = [_messages(question) for question in questions]
        texts = self.processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        videos = [torch.from_numpy(v).permute(0, 3, 1, 2) for question in questions for v in question.videos]
        made = self.processor(text=texts, videos=videos, do_sample_frames=False, return_tensors=None)
        grids = torch.as_tensor(made["video_grid_thw"])
        counts = [len(question.videos) for question in questions]
        pixels = torch.as_tensor(made["pixel_values_videos"])
        grid_of, rows = grids.split(counts), [int(part.prod(-1).sum()) for part in grids.split(counts)]
        encoded = []
        for i, (grid, patches) in enumerate(zip(grid_of, pixels.split(rows), strict=True)):
            prompt, kinds = list(made["input_ids"][i]), list(made["mm_token_type_ids"][i])
            answer = [*self.ids(answers[i]), self.end] if answers else []
            encoded.append(Encoded(prompt + answer, kinds + [0] * len(answer), len(prompt), grid, patches))
        return encoded

    def collate(self, rows: Sequence[Encoded], *, left: bool = False, opening: Sequence[int] = ()) -> dict[str, Any]:
        """A padded batch of model inputs, without labels.

        `left` pads on the left, so that generation continues each row; `opening` are tokens put after each row.
        """
        width = max(len(row.ids) for row in rows) + len(opening)

        def pad(values: Sequence[int], filler: int) -> list[int]:
            blank = [filler] * (width - len(values))
            return [*blank, *values] if left else [*values, *blank]

        ids = [[*row.ids, *opening] for row in rows]
        kinds = [[*row.kinds, *([0] * len(opening))] for row in rows]
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([pad(row, self.tokenizer.pad_token_id) for row in ids]),
            "attention_mask": torch.tensor([pad([1] * len(row), 0) for row in ids]),
            "mm_token_type_ids": torch.tensor([pad(row, 0) for row in kinds]),
            "video_grid_thw": torch.cat([row.grid for row in rows]),
        }
        pixels = [row.pixels for row in rows if row.pixels is not None]
        features = [row.features for row in rows if row.features is not None]
        if features:
            batch["mm_encoder_outputs"] = _vision_output(features)
        else:
            batch["pixel_values_videos"] = torch.cat(pixels)
        return batch

    def labels(self, rows: Sequence[Encoded]) -> torch.Tensor:
        """(batch, length) of a right-padded batch: the token that each position shall predict, IGNORED elsewhere.

        Already shifted by one; the prompt is masked by its length, never by searching text.
        """
        width = max(len(row.ids) for row in rows)
        shifted = [[IGNORED] * (row.prompt - 1) + row.ids[row.prompt :] for row in rows]
        return torch.tensor([row + [IGNORED] * (width - len(row)) for row in shifted])


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves a batch, its cached vision features included."""
    moved: dict[str, Any] = {name: value.to(device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    if "mm_encoder_outputs" in batch:
        features = batch["mm_encoder_outputs"]["video"].pooler_output
        moved["mm_encoder_outputs"] = _vision_output([part.to(device) for part in features])
    return moved


def _vision_output(features: Sequence[torch.Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    """Features in the form in which the vision tower would have given them: a tuple, one tensor a row."""
    return {"video": BaseModelOutputWithPooling(pooler_output=tuple(features))}  # pyright: ignore[reportArgumentType]


def _messages(question: Question) -> list[dict[str, Any]]:
    """The chat in the form that processors of transformers take."""
    content: list[dict[str, Any]] = []
    for line in frame_lines(question.bounds, question.pairs):
        content += [{"type": "text", "text": line}, {"type": "video"}]
    content.append({"type": "text", "text": question.text})
    return [{"role": "user", "content": content}]
