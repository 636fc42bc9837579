"""Prompts of a batch, run once, and the sequences that are written after them.

Belongs here: the key-value cache, who attends to what, and positions. Which sequences are followed, and what their
probabilities mean, is `score`'s.

The keys and values of a prompt are held once, whatever the number of sequences: all sequences of a question are written
side by side into its one row, and a 4-D attention mask shows each of them the prompt and its own tokens alone
(SpecInfer, Miao et al. 2023, calls it tree attention). A sequence that is not followed any more stays in the cache,
unseen. Layers with a recurrent state cannot skip what others wrote, so models that have some get a row a sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionCacheLayerMixin


class Prefix(ABC):
    """Sequences after the prompts of a batch: one a question at first, `branch` goes on with others.

    Tensors of sequences are (questions, sequences, …), those of a question in the order of the last `branch`.
    """

    logits: torch.Tensor  # (questions, sequences, vocabulary), of the token that comes next

    @abstractmethod
    def branch(self, parents: torch.Tensor) -> None:
        """Goes on with copies of the sequences `parents` int64 (questions, kept); `write` comes next."""

    @abstractmethod
    def write(self, ids: torch.Tensor) -> None:
        """Writes tokens (questions, sequences, new) on, equally many in each sequence."""


def run_prompts(model: Any, batch: dict[str, Any]) -> Prefix:
    """Runs a left-padded batch of model inputs."""
    output = model(**batch, use_cache=True, logits_to_keep=1)
    recurrent = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in output.past_key_values.layers)
    kind = CopiedPrefix if recurrent else SharedPrefix
    return kind(model, batch["attention_mask"], output)


class SharedPrefix(Prefix):
    """All sequences of a question in one row."""

    def __init__(self, model: Any, mask: torch.Tensor, output: Any) -> None:
        self._model, self._cache = model, output.past_key_values
        self.logits = output.logits[:, -1:]
        self._prompt = mask.bool()  # (questions, length)
        self._next = next_positions(model, mask)  # (questions, 1)
        self._seen = torch.zeros(len(mask), 1, 0, dtype=torch.bool, device=mask.device)  # of what is written after it

    def branch(self, parents: torch.Tensor) -> None:
        self._seen = self._seen.gather(1, parents[..., None].expand(-1, -1, self._seen.shape[2]))

    def write(self, ids: torch.Tensor) -> None:
        questions, sequences, new = ids.shape
        steps = torch.arange(new, device=ids.device)
        own = torch.eye(sequences, dtype=torch.bool, device=ids.device)[:, None, :, None]
        causal = (own & (steps[:, None, None] >= steps)).view(sequences * new, -1)
        before = self._seen.repeat_interleave(new, 1)
        prompt = self._prompt[:, None].expand(-1, sequences * new, -1)
        mask = torch.cat([prompt, before, causal.expand(questions, -1, -1)], 2)
        self.logits = self._model(
            input_ids=ids.flatten(1),
            attention_mask=mask[:, None],
            position_ids=_as_asked(self._model, (self._next + steps).repeat(1, sequences)),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.arange(sequences, device=ids.device) * new + new - 1,
        ).logits
        written = own.expand(-1, -1, -1, new).reshape(sequences, -1).expand(questions, -1, -1)
        self._seen, self._next = torch.cat([self._seen, written], 2), self._next + new


class CopiedPrefix(Prefix):
    """A row a sequence, each with a copy of its prompt's state."""

    def __init__(self, model: Any, mask: torch.Tensor, output: Any) -> None:
        self._model, self._cache = model, output.past_key_values
        self.logits = output.logits[:, -1:]
        self._mask, self._next = mask, next_positions(model, mask)

    def branch(self, parents: torch.Tensor) -> None:
        questions, before = self.logits.shape[:2]
        rows = (torch.arange(questions, device=parents.device)[:, None] * before + parents).flatten()
        self._cache.reorder_cache(rows)
        self._mask, self._next = self._mask[rows], self._next[rows]

    def write(self, ids: torch.Tensor) -> None:
        rows = ids.flatten(0, 1)
        self._mask = torch.cat([self._mask, torch.ones_like(rows)], 1)
        logits = self._model(
            input_ids=rows,
            attention_mask=self._mask,
            position_ids=_as_asked(self._model, self._next + torch.arange(rows.shape[1], device=rows.device)),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self.logits, self._next = logits.view(*ids.shape[:2], -1), self._next + rows.shape[1]


def next_positions(model: Any, mask: torch.Tensor) -> torch.Tensor:
    """The position that comes after each prompt of the batch that `model` has just run: (questions, 1)."""
    after = mask.long().sum(1, keepdim=True)
    offset = _rope_offset(model)
    return after if offset is None else after + offset.to(after.device)


def _as_asked(model: Any, positions: torch.Tensor) -> torch.Tensor:
    """Positions (rows, tokens) as the family's forward pass takes them: M-RoPE has one each for time, height, width."""
    return positions if _rope_offset(model) is None else positions[None].expand(3, -1, -1)


def _rope_offset(model: Any) -> torch.Tensor | None:
    """M-RoPE's difference between a token's index and its position after vision tokens; None for other families."""
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            return module.rope_deltas
    return None
