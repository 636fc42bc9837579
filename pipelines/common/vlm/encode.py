"""Questions and answers as tensors, with the model's own processor and chat template.

What differs between families of models stands in `families`; here is what all of them share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipelines.common.errors import SetupError
from pipelines.common.vlm.dialogue import Question
from pipelines.common.vlm.families import Family, by_processor

IGNORED = -100  # a label that no loss counts


@dataclass(frozen=True)
class Encoded:
    """One question (and answer) in tokens.

    ids, kinds: token ids and their kinds (0 text, 2 video), equally long; the first `prompt` of them are the question.
    pixels: of all its videos, in Qwen (patches, patch values), in LLaVA (videos, frames, 3, height, width); None once
    `features`, the vision tower's output with one row a token, stands in for them. grid: (videos, 3) patches in time,
    height and width; None in families that have no such grid.
    """

    ids: list[int]
    kinds: list[int]
    prompt: int
    grid: torch.Tensor | None
    pixels: torch.Tensor | None
    features: torch.Tensor | None = None

    def with_features(self, features: torch.Tensor) -> Encoded:
        return replace(self, pixels=None, features=features)


class Encoder:
    """Encodes for one model; `processor` is what `AutoProcessor` gives for it.

    `family` is the adapter; by default the one of the processor's class. SetupError where there is none, or where the
    tokenizer has no token to pad with.
    """

    def __init__(self, processor: Any, family: Family | None = None) -> None:
        self.processor = processor
        self.family = family or by_processor(processor)
        self.tokenizer = processor.tokenizer
        self.end = self.tokenizer.convert_tokens_to_ids(self.family.end)
        if self.tokenizer.pad_token_id is None:
            raise SetupError("the tokenizer has no padding token", cure="Set `pad_token` in tokenizer_config.json.")

    def ids(self, text: str) -> list[int]:
        """Tokens of text that goes on after other text."""
        return self.family.ids(self.tokenizer, text)

    def encode(self, questions: Sequence[Question], answers: Sequence[str] | None = None) -> list[Encoded]:
        """Tokens of each question, followed by its answer and the end token where answers are given."""
        chats = [[{"role": "user", "content": self.family.content(one, self.processor)}] for one in questions]
        texts = self.processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        videos = [torch.from_numpy(v).permute(0, 3, 1, 2) for question in questions for v in question.videos]
        options = self.family.options(questions)
        made = self.processor(text=texts, videos=videos, return_tensors=None, **options)
        pictures = self.family.pixels(made, [len(question.videos) for question in questions])
        prompts = made["input_ids"]
        encoded = []
        for i, (prompt, kinds) in enumerate(
            zip(prompts, self.processor.create_mm_token_type_ids(prompts), strict=True)
        ):
            answer = [*self.ids(answers[i]), self.end] if answers else []
            pixels, grid = pictures[i]
            encoded.append(Encoded([*prompt, *answer], kinds + [0] * len(answer), len(prompt), grid, pixels))
        return encoded

    @torch.no_grad()
    def see(self, model: Any, rows: Sequence[Encoded]) -> list[Encoded]:
        """The same rows after a look through the model's vision tower, whose output then stands in for pixels."""
        seen = []
        for row in rows:
            grid = None if row.grid is None else row.grid.to(model.device)
            pixels = row.pixels if row.pixels is None else row.pixels.to(model.device)
            seen.append(row if pixels is None else row.with_features(self.family.look(model, pixels, grid)))
        return seen

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
        mask = torch.tensor([pad([1] * len(row), 0) for row in ids])
        grids = [row.grid for row in rows if row.grid is not None]
        batch: dict[str, Any] = {
            "input_ids": torch.tensor([pad(row, self.tokenizer.pad_token_id) for row in ids]),
            "attention_mask": mask,
            **self.family.places(torch.tensor([pad(row, 0) for row in kinds]), mask, grids),
        }
        pixels = [row.pixels for row in rows if row.pixels is not None]
        features = [row.features for row in rows if row.features is not None]
        if features:
            batch["mm_encoder_outputs"] = self.family.seen(features)
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
    """Moves a batch, kept vision features included."""
    return _moved(batch, device)


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors inside of dictionaries (the outputs of models are some), lists and tuples, all on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return type(value)(**{name: _moved(part, device) for name, part in value.items()})
    return type(value)(_moved(part, device) for part in value)
