"""In which type a model computes on a device, and what fp16 needs that bf16 and fp32 do not.

Belongs here: the choice, norms in fp32, the scale of the loss. Where the loop applies the scale is `train`'s.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from pipelines.common.errors import DataError

LEAST_CAPABILITY = (8, 0)  # of CUDA for bf16: a T4 has 7.5, and takes some seven times as long emulating it


def compute_dtype(device: torch.device) -> torch.dtype:
    """fp32 on a CPU, where half precision is slower on most; bf16 on a GPU that has it, else fp16."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY else torch.float16


def dtype_name(dtype: torch.dtype) -> str:
    """`float16` and so on, for a log or a model card."""
    return str(dtype).removeprefix("torch.")


def norms_in_fp32(model: Any) -> Any:
    """The same model, whose norms have fp32 weights, compute in fp32 and give what they were given: squares of fp16
    above 256 are no numbers, and Qwen2-VL's residuals reach thousands."""
    modules: list[Any] = list(model.modules())
    for module in modules:
        if isinstance(module, torch.nn.LayerNorm) or type(module).__name__.endswith("RMSNorm"):
            _compute_in_fp32(module)
    return model


def _compute_in_fp32(norm: Any) -> None:
    norm.float()
    norm.forward = partial(_in_fp32, norm.forward)


def _in_fp32(forward: Any, hidden: torch.Tensor) -> torch.Tensor:
    return forward(hidden.float()).to(hidden.dtype)


class LossScale:
    """What the loss is multiplied by before the backward pass, so that small gradients do not vanish in fp16.

    Halved where gradients overflow, which skips that step, and doubled after many that did not, as in torch's
    GradScaler (Micikevicius et al. 2018). That one decides for each optimiser by itself; here all of them, in all
    processes, take a step or none does.
    """

    START, LONGEST = 2.0**16, 2000  # GradScaler's own: its first scale, and steps until it is doubled

    def __init__(self, scale: float = START, good: int = 0) -> None:
        self.value, self._good = scale, good

    @classmethod
    def needed(cls, weights: Any) -> LossScale | None:
        """None unless some of the weights are fp16."""
        return cls() if any(weight.dtype == torch.float16 for weight in weights) else None

    def state(self) -> list[float]:
        """For a checkpoint; `LossScale(*state)` goes on from it."""
        return [self.value, self._good]

    def stepped(self) -> None:
        self._good += 1
        if self._good >= self.LONGEST:
            self.value, self._good = self.value * 2, 0

    def overflowed(self, step: int) -> str:
        """What to tell. DataError where the loss itself is too large for fp16."""
        self.value, self._good = self.value / 2, 0
        if self.value < 1:
            what = f"gradients of step {step} overflow float16 at any scale of the loss"
            raise DataError(what, cure="Lower the learning rate, or train on a GPU with bfloat16 (A100, H100, L4).")
        return f"step {step}: gradients overflowed float16, step skipped, loss scale {self.value:g}"
