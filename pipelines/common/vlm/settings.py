"""Settings of models and trainings, for every system that tunes one. Imports no torch, since Dagster loads it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.common.settings import Settings

Quantization = Literal["nf4", "none"]
Device = Literal["auto", "cuda", "cpu"]
Optimiser = Literal["adamw", "adamw_8bit", "muon"]


class TinySettings(Settings):
    """Size of the embedded model."""

    image: int = 84  # pixels a side that the model sees
    patch: int = (
        14  # 6×6 patches, 9 tokens a pair: hands and labels are told apart; a step takes a third longer than with 4
    )
    hidden: int = Field(default=128, multiple_of=32)  # as 4 bits on a CPU ask
    layers: int = 4
    heads: int = 4
    vision_hidden: int = 128
    vision_layers: int = 4
    initial: float = 0.06  # standard deviation of the weights: 1/√hidden; the 0.02 of large models learns far slower


class LoopSettings(Settings):
    """What every training has, whatever it trains."""

    seed: int = 7
    steps: int = Field(ge=1)  # of the optimiser
    batch_size: int = Field(default=2, ge=1)  # clips that are on the device at once: 2 fit a T4 at full size
    gradient_accumulation_steps: int = Field(default=8, ge=1)  # × batch_size = 16 clips a step
    learning_rate: float = Field(default=2e-4, gt=0)  # the usual start for LoRA of this rank
    warmup_share: float = Field(default=0.05, ge=0, lt=1)  # Adam's second moments are noise before
    final_share: float = Field(default=0.05, ge=0, le=1)  # of the rate, at the end of the cosine
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    save_steps: int = Field(default=50, ge=1)  # the brief's; a lost free-tier machine costs at most this much
    save_total_limit: int = Field(default=3, ge=1)
    threads: int | None = None  # of torch on a CPU; None leaves torch's own choice
    # AdamW; or that of bitsandbytes with moments of one byte: 6 B less for each trained weight, 0.1 GB at full size,
    # and other weights in the end; or Muon (Jordan 2024): two thirds of the steps here, untried at full size
    optimiser: Optimiser = "adamw"
    by_length: bool = True  # the samples of a step are parted by length: less padding, the same gradient
    use_cache: bool = False  # keys and values are for generation; the brief's, and checkpointing rules it out
    tensorboard: bool = False  # curves beside the adapter; the embedded model's loss is on its asset page


class LoraSettings(Settings):
    """Which weights the adapter changes."""

    rank: int = 16
    alpha: int = 32  # twice the rank, the usual scale
    dropout: float = 0.0  # augmentation regularises; dropout would also slow a model this small
    vision: bool = True  # also the vision tower


class AugmentSettings(Settings):
    """How far pictures are changed; zero changes nothing. The defaults are for a model that has seen camera pictures:
    it knows what cardboard and skin look like, and loses that where every clip has other colours."""

    crop: float = Field(default=0.1, ge=0, lt=0.5)  # of each side at most: a camera that someone has touched
    light: float = Field(default=0.25, ge=0, lt=1)  # relative brightness
    colour: float = Field(default=0.1, ge=0, lt=1)  # mixing of the colour channels: lamps, white balance
    palette: float = Field(default=0.0, ge=0, lt=1)  # of a random smooth map of colours, at most: each thing by itself
    renumber: int = Field(default=10, ge=0)  # frames by which a bound is moved at most, or prompts are learned by heart

    @property
    def changes_pictures(self) -> bool:
        """Whether a clip looks different each time; `renumber` changes text alone."""
        return any((self.crop, self.light, self.colour, self.palette))
