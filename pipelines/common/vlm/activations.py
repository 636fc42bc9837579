"""What one clip takes of memory on its way through a model in training, family by family, from a config alone.

Belongs here: how many patches and tokens a clip becomes, and the bytes of activations that its backward pass still
needs and that are there at once. Weights, optimiser and the sum of it all are `vram`'s and do not.

A linear with LoRA keeps its input in fp32 (4 B an entry), one without keeps none; a norm keeps its input, RMSNorm in
fp32 and LayerNorm in bf16; attention keeps queries, keys, values and its output in bf16. What that comes to for each
token and each unit of width was counted tensor by tensor over whole steps on a CPU in bf16, with small models of many
shapes; tests/test_activations.py counts again, in every family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipelines.common.clip_format import DEFAULT_FORMAT
from pipelines.common.errors import SetupError
from pipelines.common.vlm.settings import Optimiser

PAIR = 2  # frames that a line of the prompt stands before, in every family
LOGITS = 14  # bytes an entry: bf16, its fp32 log-softmax, and two gradients of that


@dataclass(frozen=True)
class Step:
    """What goes through the model at once. Lengths of text are those of the packing prompt in Qwen2's tokens."""

    batch_size: int = 2
    frames: int = 8
    image: int = DEFAULT_FORMAT.size  # pixels a side, as the model's processor gives it on
    instruction_tokens: int = 172  # with those of the chat
    line_tokens: int = 24  # the line before a pair of frames, and the marks around it
    answer_tokens: int = 24
    gradient_checkpointing: bool = True
    all_logits: bool = False  # True: as a plain training step makes them, at every position
    optimiser: Optimiser = "adamw"


@dataclass(frozen=True)
class Tower:
    """One clip in a vision tower. Bytes are those of a patch, in bf16 but for what is said."""

    patches: int
    tokens: int  # that the language part gets
    layers: int  # that a gradient goes through when the tower is trained
    between: int  # bytes from one layer to the next: all that checkpointing keeps of it
    saved: int  # of a layer for its backward
    in_flight: int  # hidden states and gradients while a layer goes backward
    once: int  # kept beside the layers: rotations, and what makes tokens of patches, which no family checkpoints
    looked: int  # at most, where nothing is kept: pixels, and queries and keys that are turned in fp32
    unused: int = 0  # layers after the one that is taken; what they keep is there until the forward pass has ended


@dataclass(frozen=True)
class Clip:
    """Bytes of one clip in a training step."""

    kept: int  # of the language part, for backward
    layer: int  # on top of it, while one of its layers goes backward
    logits: int
    vision_kept: int
    vision: int  # at most beside that, in the tower


def of_clip(config: Any, step: Step, vision: bool) -> Clip:
    """Activations of each clip of `step`; `vision` says whether the tower is trained too.

    SetupError for a family whose sizes are not known.
    """
    tower = tower_of(config, step)
    kept, layer, logits = _text(config, step, tower.tokens)
    if not vision:
        return Clip(kept, layer, logits, 0, tower.patches * tower.looked)
    inputs, backward = tower.between, tower.in_flight + tower.saved
    if not step.gradient_checkpointing:
        inputs, backward = tower.saved, tower.in_flight
    vision_kept = tower.patches * (tower.layers * inputs + tower.once)
    return Clip(kept, layer, logits, vision_kept, tower.patches * max(backward, tower.unused * inputs))


def vision_tokens(config: Any, step: Step) -> int:
    """Tokens that one clip's frames become: 72 a frame of 336×336 in Qwen2-VL, since two frames share a patch."""
    return tower_of(config, step).tokens


def tower_of(config: Any, step: Step) -> Tower:
    """The vision tower of a model for one clip; SetupError for a family whose sizes are not known."""
    require_known(config)
    return TOWERS[config.model_type](config, step)


def require_known(config: Any) -> None:
    """SetupError for a family whose sizes are not known."""
    if config.model_type not in TOWERS:
        cure = f"Take a model of one of {', '.join(TOWERS)}, or add the family's sizes to {__name__}."
        raise SetupError(f"no memory estimate for models of the type {config.model_type}", cure=cure)


# --- the language part ---


def _text(config: Any, step: Step, vision: int) -> tuple[int, int, int]:
    """Bytes of one clip in the language part: kept, one layer's backward, logits."""
    sizes = config.get_text_config()
    width, mlp, heads = sizes.hidden_size, sizes.intermediate_size, sizes.num_attention_heads
    head = getattr(sizes, "head_dim", None) or width // heads
    queries, keys = heads * head, sizes.num_key_value_heads * head
    text = step.instruction_tokens + math.ceil(step.frames / PAIR) * step.line_tokens + step.answer_tokens
    tokens = vision + text
    # two norms and the inputs of five adapters; queries, keys and values of every head, and the output's adapter
    saved = 28 * width + 12 * queries + 10 * mlp
    if sizes.model_type == "qwen3_vl_text":
        saved += 4 * (queries + keys)  # RMSNorm of each head
    in_flight = 10 * width + 4 * mlp  # hidden states, gradients and an adapter's output while they are added up
    inputs = 2 * width if step.gradient_checkpointing else saved
    # and the embeddings, which presets with checkpointing ask for a gradient of, the last norm's and the rotations
    kept = tokens * (sizes.num_hidden_layers * inputs + 6 * width + 4 * head)
    layer = tokens * (in_flight + (saved if step.gradient_checkpointing else 0))
    return kept, layer, (tokens if step.all_logits else step.answer_tokens) * sizes.vocab_size * LOGITS


# --- vision towers ---


def _grid(vision: Any, step: Step) -> tuple[int, int]:
    """Patches and merged tokens of one clip in Qwen; its processors round a side to whole merged patches and fill up
    the last pair."""
    merged = round(step.image / vision.patch_size / vision.spatial_merge_size)
    pairs = math.ceil(step.frames / vision.temporal_patch_size)
    return pairs * (merged * vision.spatial_merge_size) ** 2, pairs * merged**2


def _looked(vision: Any, width: int) -> int:
    """Pixels in fp32 and bf16; then queries and keys, which are turned in fp32."""
    return 6 * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 + 36 * width


def _rotations(width: int, vision: Any) -> int:
    """Sines and cosines of a head in fp32."""
    return 8 * width // vision.num_heads


def _qwen2_vl(config: Any, step: Step) -> Tower:
    vision = config.vision_config
    width, mlp = vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio)
    return Tower(
        *_grid(vision, step),
        layers=vision.depth,
        between=2 * width,
        saved=30 * width + 8 * mlp,
        in_flight=4 * width + 4 * mlp,
        once=12 * width + _rotations(width, vision),
        looked=_looked(vision, width),
    )


def _qwen2_5_vl(config: Any, step: Step) -> Tower:
    """RMSNorm and a gated MLP, as in the language part. Attention within windows keeps the same tensors; patches are
    there in both orders."""
    vision = config.vision_config
    width, mlp = vision.hidden_size, vision.intermediate_size
    return Tower(
        *_grid(vision, step),
        layers=vision.depth,
        between=2 * width,
        saved=37 * width + 10 * mlp,
        in_flight=4 * width + 4 * mlp,
        once=16 * width + _rotations(width, vision),
        looked=_looked(vision, width),
    )


def _qwen3_vl(config: Any, step: Step) -> Tower:
    """One merger more for each layer whose output goes in after a first layer of the language part."""
    vision = config.vision_config
    width, mlp = vision.hidden_size, vision.intermediate_size
    return Tower(
        *_grid(vision, step),
        layers=vision.depth,
        between=2 * width,
        saved=30 * width + 6 * mlp,
        in_flight=4 * width + 4 * mlp,
        once=(12 + 10 * len(vision.deepstack_visual_indexes)) * width + _rotations(width, vision),
        looked=_looked(vision, width),
    )


def _llava_next_video(config: Any, step: Step) -> Tower:
    """CLIP: every frame for itself, at the tower's own size, with a class token; its tokens are pooled before they get
    the language part's width."""
    vision, text = config.vision_config, config.get_text_config()
    width, mlp, side = vision.hidden_size, vision.intermediate_size, vision.image_size // vision.patch_size
    taken, layers = config.vision_feature_layer, vision.num_hidden_layers
    used = layers + 1 + taken if taken < 0 else taken
    tokens = step.frames * (side // config.spatial_pool_stride) ** 2
    patches = step.frames * (side**2 + 1)
    projector = tokens * (4 * width + 6 * text.hidden_size)  # inputs of its adapters, and of the activation
    return Tower(
        patches,
        tokens,
        layers=used,
        between=2 * width,
        saved=33 * width + 8 * mlp,
        in_flight=4 * width + 4 * mlp,
        once=6 * width + math.ceil(projector / patches),  # patches before and after their first norm, and pooled
        looked=6 * vision.num_channels * vision.patch_size**2 + 4 * width + 6 * mlp,
        unused=layers - used,
    )


TOWERS: dict[str, Callable[[Any, Step], Tower]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_next_video": _llava_next_video,
}
