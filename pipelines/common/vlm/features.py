"""What a vision tower makes of a clip: without a graph, and once where pictures stay as they are or come again.

With `enable_input_require_grads`, transformers 5 hooks the tower's patch embedding too, and a forward pass then keeps
a graph of the whole tower that no gradient is asked of. Here the tower runs before the step, without gradients.

Format of a store: one safetensors file a clip, `<number of hundreds>/<clip's number>.safetensors`, its only tensor
`features` (one row a token) in the tower's own type: 1.8 MB for 8 frames of 336×336 in Qwen2-VL-2B.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.files import atomic_file
from pipelines.common.vlm.encode import Encoded, Encoder

FEATURES = "features"


class VisionFeatures:
    """Gives rows the output of the tower of `model` in place of their pixels.

    With a `store` each clip goes through the tower once, also over restarts. It must be this process's own, and belong
    to these weights and to pictures that never change.
    """

    def __init__(self, model: Any, encoder: Encoder, store: Path | None = None) -> None:
        self._model, self._encoder, self._store = model, encoder, store

    def fill(self, rows: Sequence[Encoded], numbers: Sequence[int]) -> list[Encoded]:
        """The same rows with features on the CPU; `numbers` says which clip each row shows.

        One clip at a time, so that features are the same bits in any batch.
        """
        return [row.with_features(self._of(row, number)) for row, number in zip(rows, numbers, strict=True)]

    def _of(self, row: Encoded, number: int) -> torch.Tensor:
        if self._store is None:
            return self._computed(row)
        file = self._store / f"{number // 100:04d}" / f"{number:06d}.safetensors"
        if not file.is_file():
            with atomic_file(file) as part:
                save_file({FEATURES: self._computed(row)}, part)
        return load_file(file)[FEATURES]

    def _computed(self, row: Encoded) -> torch.Tensor:
        (seen,) = self._encoder.see(self._model, [row])
        assert seen.features is not None
        return seen.features.cpu().contiguous()


class PairFeatures:
    """Gives rows the output of the tower in place of their pixels; equal pairs of frames go through it once.

    A pair is looked at by itself in every family, so shuffled pairs, and grey ones, cost nothing again. Within a
    `kept` block pairs are also remembered from call to call, on the CPU.
    """

    # of pixels: one clip at full size, so that memory does not grow with the batch
    VALUES_AT_ONCE = 8 * 3 * DEFAULT_FORMAT.size**2

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self._model, self._encoder = model, encoder
        self._remembered: dict[str, torch.Tensor] = {}
        self._keeps = False
        towers = tuple(f"{tower}." for tower in encoder.family.tower)
        named = (name for name, _ in model.named_parameters())
        # where an adapter is on the tower itself, it sees differently without
        self._tuned = any("lora_" in name and any(tower in name for tower in towers) for name in named)

    @contextmanager
    def kept(self) -> Iterator[None]:
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            self._remembered.clear()

    @torch.no_grad()
    def fill(self, rows: Sequence[Encoded], *, adapted: bool = True) -> list[Encoded]:
        """The same rows with features; `adapted` says whether the adapter is switched on."""
        weights = "adapter" if adapted and self._tuned else "base"
        pairs = [self._pairs(row) for row in rows]
        names = [[f"{weights} {_digest(pixels)}" for pixels, _ in own] for own in pairs]
        flat = zip((name for own in names for name in own), (pair for own in pairs for pair in own), strict=True)
        missing = {name: pair for name, pair in flat if name not in self._remembered}
        self._look(missing)
        filled = [
            row.with_features(torch.cat([self._remembered[name] for name in own]))
            for row, own in zip(rows, names, strict=True)
        ]
        if not self._keeps:
            self._remembered.clear()
        return filled

    def _pairs(self, row: Encoded) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        assert row.pixels is not None
        pixels = self._encoder.family.pairs(row.pixels, row.grid)
        return list(zip(pixels, [None] * len(pixels) if row.grid is None else row.grid.split(1), strict=True))

    def _look(self, missing: dict[str, tuple[torch.Tensor, torch.Tensor | None]]) -> None:
        """Pairs of one size go through the tower together, as many as are allowed at once."""
        by_size: dict[torch.Size, list[str]] = {}
        for name, (pixels, _) in missing.items():
            by_size.setdefault(pixels.shape, []).append(name)
        device = self._model.device
        for size, names in by_size.items():
            count = max(1, self.VALUES_AT_ONCE // size.numel())
            for part in (names[start : start + count] for start in range(0, len(names), count)):
                pixels = torch.cat([missing[name][0] for name in part]).to(device)
                grids = [grid for name in part if (grid := missing[name][1]) is not None]
                made = self._encoder.family.look(self._model, pixels, torch.cat(grids).to(device) if grids else None)
                self._remembered |= zip(part, made.cpu().chunk(len(part)), strict=True)


def _digest(pixels: torch.Tensor) -> str:
    return hashlib.blake2b(pixels.contiguous().numpy().tobytes(), digest_size=16).hexdigest()
