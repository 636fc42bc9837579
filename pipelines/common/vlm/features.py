"""What a frozen vision tower makes of a clip: without a graph, and once a clip where pictures stay as they are.

With `enable_input_require_grads`, transformers 5 hooks the tower's patch embedding too, and a forward pass then keeps
a graph of the whole tower that no gradient is asked of. Here the tower runs before the step, without gradients.

Format of a store: one safetensors file a clip, `<number of hundreds>/<clip's number>.safetensors`, its only tensor
`features` (one row a token) in the tower's own type: 1.8 MB for 8 frames of 336×336 in Qwen2-VL-2B.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

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
