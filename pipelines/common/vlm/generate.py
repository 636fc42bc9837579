"""Free answers: what the model writes by itself, token by token, each time the most probable one.

Belongs here: greedy decoding of a batch. Reading what was written (`dialogue.parse_answer`) and scoring the answers
that are possible instead (`score`) do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.common.vlm.dialogue import Question
from pipelines.common.vlm.encode import to_device
from pipelines.common.vlm.load import Vlm


def generate(vlm: Vlm, questions: Sequence[Question], most_tokens: int) -> list[str]:
    """The text that follows each question, up to the end token or `most_tokens` tokens, in one batch."""
    encoder = vlm.encoder
    batch = to_device(encoder.collate(encoder.encode(questions), left=True), vlm.device)
    with torch.inference_mode():
        rows = vlm.model.generate(
            **batch,
            max_new_tokens=most_tokens,
            do_sample=False,
            **dict.fromkeys(("temperature", "top_p", "top_k")),  # published ones sample; with greedy they only warn
            eos_token_id=encoder.end,
            pad_token_id=encoder.tokenizer.pad_token_id,
        )
    written = rows[:, batch["input_ids"].shape[1] :].tolist()
    return [encoder.tokenizer.decode(row[: row.index(encoder.end)] if encoder.end in row else row) for row in written]
