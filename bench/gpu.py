"""`python -m bench.gpu`: what a training step and an answer take on the GPU of this machine, into `bench/gpu.json`.

Full-size Qwen2-VL-2B with random weights, built from its published sizes without a hub: memory and speed do not depend
on the values. Every training case runs through the product's own loading, LoRA, loss and optimiser, and is compared
with the estimate from the config. Prompts have the lengths of the packing prompt in Qwen2's tokens.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import prepare_model_for_kbit_training
from transformers import Qwen2VLForConditionalGeneration

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.console import run
from pipelines.common.errors import SetupError
from pipelines.common.files import write_json
from pipelines.common.vlm import dialogue, tiny
from pipelines.common.vlm.activations import Step
from pipelines.common.vlm.dialogue import Answer, Question
from pipelines.common.vlm.encode import Encoded, to_device
from pipelines.common.vlm.features import VisionFeatures
from pipelines.common.vlm.load import Vlm, load
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.optimiser import make_optimiser
from pipelines.common.vlm.published import qwen2_vl_2b
from pipelines.common.vlm.score import score
from pipelines.common.vlm.settings import LoopSettings, LoraSettings, Optimiser, Quantization, TinySettings
from pipelines.common.vlm.train import loss_sum
from pipelines.common.vlm.vram import count_weights, estimate
from pipelines.openpack.prompt import instruction
from pipelines.openpack.taxonomy import OPENPACK

RESULTS = Path(__file__).with_name("gpu.json")
LORA = LoraSettings(vision=False)
WARM, TIMED = 2, 5  # steps
IMAGE = DEFAULT_FORMAT.size


@dataclass(frozen=True)
class Case:
    """A training step; the defaults are those of the preset t4."""

    batch: int = 2
    frames: int = 8
    quantization: Quantization = "nf4"
    checkpointing: bool = True
    tower: str = "outside"  # outside: no graph; kept: its output is there already; inside: as a plain step runs it
    logits: str = "answer"  # or all
    optimiser: Optimiser = "adamw"
    plain: bool = False  # transformers and PEFT as their guides say: prepare_model_for_kbit_training, `labels`

    def step(self, answer_tokens: int, text_tokens: int) -> Step:
        """What the estimate is asked; all text but the answer counts as instruction."""
        return Step(
            self.batch,
            self.frames,
            IMAGE,
            text_tokens,
            0,
            answer_tokens,
            self.checkpointing,
            self.logits == "all",
            self.optimiser,
        )


PLAIN = Case(plain=True, tower="inside", logits="all")
CASES = (
    *(Case(batch, frames) for frames in (8, 16) for batch in (1, 2, 4, 8)),
    Case(tower="kept"),
    Case(tower="inside"),
    Case(logits="all"),
    Case(checkpointing=False),
    Case(quantization="none"),
    Case(optimiser="adamw_8bit"),
    PLAIN,
)


def write_model(folder: Path, config: Any, device: torch.device) -> None:
    """A model with random weights in bf16, and a processor of the embedded model's kind, as `load` wants them."""
    phrases = (*dialogue.FRAME_PHRASES, *dialogue.ANSWER_PHRASES, *tiny.CHAT_PHRASES, instruction(OPENPACK))
    processor = tiny.processor(phrases, TinySettings(image=IMAGE, patch=config.vision_config.patch_size))
    ids = processor.tokenizer.get_vocab()
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id = ids["<|vision_start|>"]
    torch.manual_seed(0)
    with device:
        model: Any = Qwen2VLForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)


def questions(count: int, frames: int) -> list[Question]:
    """Drawn at random, with frames in pairs."""
    rng = np.random.default_rng(0)
    bounds = tuple(int(bound) for bound in np.linspace(0, DEFAULT_FORMAT.frames, frames // 2 + 1))
    pairs = tuple((low + 1, low + 2) for low in bounds[:-1])
    text = instruction(OPENPACK)
    return [
        Question(tuple(rng.integers(0, 255, (2, IMAGE, IMAGE, 3), dtype=np.uint8) for _ in pairs), bounds, pairs, text)
        for _ in range(count)
    ]


def rows(vlm: Vlm, case: Case) -> list[Encoded]:
    """Samples with as many tokens of text as Qwen2 makes of the packing prompt, filled up with one letter."""
    step = Step(frames=case.frames)
    text = step.instruction_tokens + case.frames // 2 * step.line_tokens
    answers = [Answer(("E", "E", "F", "F"), "G").text()] * case.batch
    (filler,) = vlm.encoder.ids("x")
    made = []
    for row in vlm.encoder.encode(questions(case.batch, case.frames), answers):
        prompt, answer = row.ids[: row.prompt], row.ids[row.prompt :]
        prompt += [filler] * (text - row.kinds[: row.prompt].count(0))
        answer += [filler] * (step.answer_tokens - len(answer))
        kinds = row.kinds[: row.prompt] + [0] * (len(prompt) + len(answer) - row.prompt)
        made.append(replace(row, ids=prompt + answer, prompt=len(prompt), kinds=kinds))
    return made


def train(folder: Path, case: Case, device: torch.device) -> dict[str, Any]:
    """Seconds a step, samples a second and peak bytes of a case, with the estimate; or that memory ran out."""
    _forget(device)
    try:
        measured = _measure(folder, case, device)
    except torch.OutOfMemoryError:
        measured = {"out_of_memory": True}
    return {"case": asdict(case), **measured}


def _measure(folder: Path, case: Case, device: torch.device) -> dict[str, Any]:
    vlm = load(folder, quantization=case.quantization, device="cuda" if device.type == "cuda" else "cpu")
    given = rows(vlm, case)
    kinds, answer = given[0].kinds, len(given[0].ids) - given[0].prompt
    step = case.step(answer, kinds.count(0) - answer)
    made = estimate(vlm.model.config, count_weights(vlm.model.config, LORA, case.quantization), step)
    base = prepare_model_for_kbit_training(vlm.model, case.checkpointing) if case.plain else vlm.model
    model = put_lora(
        base, LORA, gradient_checkpointing=case.checkpointing and not case.plain, input_require_grads=case.checkpointing
    ).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = make_optimiser(weights, LoopSettings(steps=1, optimiser=case.optimiser))
    features = VisionFeatures(model, vlm.encoder)
    kept = features.fill(given, range(len(given))) if case.tower == "kept" else given

    def once() -> None:
        seen = features.fill(given, range(len(given))) if case.tower == "outside" else kept
        _loss(model, vlm, seen, case, device).backward()
        optimiser.step(1e-4)
        optimiser.zero_grad()

    seconds = _seconds(once, WARM, TIMED, device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "tokens": len(given[0].ids),
        "step_s": round(seconds, 4),
        "samples_per_s": round(case.batch / seconds, 3),
        "peak_bytes": peak,
        "estimated_bytes": made.allocated,
        "peak_to_estimate": round(peak / made.allocated, 3) if peak else None,
    }


def _loss(model: Any, vlm: Vlm, given: Sequence[Encoded], case: Case, device: torch.device) -> torch.Tensor:
    if case.logits == "answer":
        return loss_sum(model, vlm.encoder, given, device)
    batch = to_device(vlm.encoder.collate(given), device)
    labels = torch.full_like(batch["input_ids"], -100)
    for place, row in enumerate(given):
        labels[place, row.prompt : len(row.ids)] = batch["input_ids"][place, row.prompt : len(row.ids)]
    return model(**batch, labels=labels, use_cache=False).loss


def answering(folder: Path, device: torch.device, clips: Sequence[int] = (1, 8)) -> list[dict[str, Any]]:
    """Seconds of closed-set scoring, questions to posteriors, for so many clips at once."""
    _forget(device)
    vlm = load(folder, quantization="nf4", device="cuda" if device.type == "cuda" else "cpu")
    made = []
    for count in clips:
        asked = questions(count, 8)
        seconds = _seconds(lambda asked=asked: score(vlm, asked, OPENPACK.codes), WARM, TIMED, device)
        made.append({"clips": count, "seconds": round(seconds, 4), "clips_per_s": round(count / seconds, 2)})
    return made


def matmul_rate(device: torch.device, size: int = 8192) -> float:
    """Floating-point operations a second that a large bf16 product reaches: this card's peak in practice."""
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / _seconds(lambda: one @ one, WARM, TIMED, device)


def against_plain(measured: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Samples a second and peak memory of the preset t4, and with kept features, over those of the plain step."""
    by_case = {Case(**one["case"]): one for one in measured}
    plain, made = by_case[PLAIN], {}
    for name, case in {"t4": Case(), "t4_kept_features": Case(tower="kept")}.items():
        for figure in ("samples_per_s", "peak_bytes"):
            ours, theirs = by_case[case].get(figure), plain.get(figure)
            made[f"{name}_{figure}_ratio"] = round(ours / theirs, 3) if ours and theirs else None
    return made


def _seconds(work: Callable[[], object], warm: int, timed: int, device: torch.device) -> float:
    """Mean seconds of `work`, after a few that do not count."""
    for _ in range(warm):
        work()
    _wait(device)
    started = time.perf_counter()
    for _ in range(timed):
        work()
    _wait(device)
    return (time.perf_counter() - started) / timed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def main() -> None:
    if not torch.cuda.is_available():
        cure = "Run this where `nvidia-smi` lists a GPU; nothing of it can be measured on a CPU."
        raise SetupError("no CUDA device is to be seen", cure=cure)
    device = torch.device("cuda", torch.cuda.current_device())
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write_model(folder, qwen2_vl_2b(), device)
        measured = []
        for case in CASES:
            measured.append(train(folder, case, device))
            print(measured[-1], flush=True)
        results = {
            "card": torch.cuda.get_device_name(device),
            "card_bytes": torch.cuda.get_device_properties(device).total_memory,
            "torch": torch.__version__,
            "weights": "random, sizes of Qwen/Qwen2-VL-2B-Instruct",
            "matmul_tflops": round(matmul_rate(device) / 1e12, 1),
            "training": measured,
            "against_plain_transformers": against_plain(measured),
            "closed_set_scoring": answering(folder, device),
        }
    write_json(RESULTS, results)


if __name__ == "__main__":
    run(main)
