"""No product of matrices on a CPU runs in half precision: most processors have no instructions for it and take 10 to 20
times as long."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_train import CPU, rows_of, settings
from torch.utils._python_dispatch import TorchDispatchMode
from toy_vlm import CODES, make, question

from pipelines.common.vlm.generate import generate
from pipelines.common.vlm.load import load
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.score import score
from pipelines.common.vlm.settings import LoraSettings
from pipelines.common.vlm.train import fit
from pipelines.openpack.finetune import _model
from pipelines.openpack.settings import FinetuneSettings

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = (torch.float16, torch.bfloat16)
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "addmv", "mv", "dot", "convolution", "attention")


class Products(TorchDispatchMode):
    """Notes every product of matrices that is dispatched, and those with operands of half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.half: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function)
        if any(product in name.split(".")[1].split("_") or product in name for product in PRODUCTS):
            self.seen.add(name)
            tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
            if any(one.dtype in HALF and one.device.type == "cpu" for one in tensors):
                self.half.add(name)
        return function(*arguments, **(options or {}))


@contextmanager
def none_in_half_precision() -> Iterator[None]:
    with Products() as products:
        yield
    assert products.seen
    assert not products.half


def test_the_mode_sees_a_product_of_half_precision():
    with Products() as products:
        torch.ones(2, 2, dtype=torch.bfloat16) @ torch.ones(2, 2, dtype=torch.bfloat16)
    assert products.half == {"aten.mm.default"}


@pytest.mark.parametrize("optimiser", ["muon", "adamw", "adamw_8bit"])
def test_a_training_of_all_weights_has_none(optimiser: str, tmp_path: Path):
    """As the base model's, with every optimiser."""
    vlm = make()
    loop = settings(steps=1, optimiser=optimiser)
    with none_in_half_precision():
        fit(vlm.model, vlm.encoder, rows_of(vlm.encoder, 2), loop, tmp_path, device=CPU, progress=str)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_of_an_adapter_on_4_bits_has_none(checkpointing: bool, toy_base: Path, tmp_path: Path):
    lora = LoraSettings(rank=4, alpha=8)
    vlm, model = _model(toy_base, FinetuneSettings(lora=lora, gradient_checkpointing=checkpointing, device="cpu"))
    with none_in_half_precision():
        fit(
            model,
            vlm.encoder,
            rows_of(vlm.encoder, 2),
            settings(steps=1, optimiser="muon"),
            tmp_path,
            device=CPU,
            progress=str,
        )


def test_answers_on_4_bits_have_none(toy_base: Path):
    """bitsandbytes would take bf16 for them on a processor that has it."""
    vlm = load(toy_base, quantization="nf4", device="cpu")
    with none_in_half_precision():
        score(vlm, [question(1)], CODES)
        generate(vlm, [question(1)], 3)
    layers = [one for one in vlm.model.modules() if hasattr(one, "support_avx512bf16_for_cpu")]
    assert layers
    assert not any(one.support_avx512bf16_for_cpu for one in layers)


def test_answers_have_none_with_and_without_an_adapter(toy_base: Path):
    vlm = make()
    with none_in_half_precision():
        score(vlm, [question(1)], CODES)
        generate(vlm, [question(1)], 3)
    put_lora(vlm.model, LoraSettings(rank=4, alpha=8), gradient_checkpointing=False)
    with none_in_half_precision():
        score(vlm, [question(1)], CODES)
