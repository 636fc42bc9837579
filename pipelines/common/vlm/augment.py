"""Changes to training clips that change no answer: another camera position, other light, other clothes, other times.

A few workers in one workplace each would otherwise be told apart by their colours. All frames of a clip are changed
alike, so that what changes between frames is still the work.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from PIL import Image, ImageFilter

from pipelines.common.keyframes import Keyframes
from pipelines.common.vlm.settings import AugmentSettings

CORNERS = 4  # a side of the grid of colours
MIN_SEGMENT = 5  # frames; as short as a segment of a short video can be


def augment(frames: np.ndarray, settings: AugmentSettings, rng: np.random.Generator) -> np.ndarray:
    """(n, h, w, 3) uint8 → the same shape and type, every frame cropped and coloured alike."""
    _, height, width, _ = frames.shape
    left, right, top, bottom = rng.uniform(0, settings.crop, 4)
    box = (left * width, top * height, width * (1 - right), height * (1 - bottom))
    matrix = (1 - settings.colour) * np.eye(3) + settings.colour * rng.dirichlet(np.ones(3), 3)
    matrix *= 1 + rng.uniform(-settings.light, settings.light)
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR, box)) for frame in frames
    ]
    mixed = np.stack(resized).astype(np.float32) @ matrix.T.astype(np.float32)
    return _repainted(np.clip(mixed, 0, 255).astype(np.uint8), rng.uniform(0, settings.palette), rng)


def _repainted(frames: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Every colour moved, near ones alike and far ones each for itself, so that wall, bench and clothes become others:
    normal shifts of standard deviation `strength`, as a share of full brightness, at the corners of a grid in RGB."""
    if not strength:
        return frames
    blue, green, red = np.meshgrid(*[np.linspace(0, 1, CORNERS)] * 3, indexing="ij")  # red changes fastest, as PIL asks
    table = np.stack([red, green, blue], -1) + strength * rng.standard_normal((CORNERS,) * 3 + (3,))
    lookup = ImageFilter.Color3DLUT(CORNERS, table.astype(np.float32).ravel().tolist())
    count, height, width, _ = frames.shape
    strip = Image.fromarray(frames.reshape(count * height, width, 3))
    return np.array(strip.filter(lookup)).reshape(frames.shape)


def renumber(keyframes: Keyframes, settings: AugmentSettings, rng: np.random.Generator) -> Keyframes:
    """The same segments with other frame numbers, as if a little earlier or later; the first and last bound stay.

    Without it the numbers in a prompt tell every training clip from all others, and a model learns them by heart
    instead of looking. What the pictures show of the order of things stays true.
    """
    bounds = list(keyframes.bounds)
    for i in range(1, len(bounds) - 1):
        low, high = bounds[i - 1] + MIN_SEGMENT, keyframes.bounds[i + 1] - MIN_SEGMENT
        low, high = max(low, bounds[i] - settings.renumber), min(high, bounds[i] + settings.renumber)
        bounds[i] = int(rng.integers(low, high + 1)) if low <= high else bounds[i]
    pairs = []
    for low, high in pairwise(bounds):
        first = int(rng.integers(low, high - 2))
        pairs.append((first, first + int(rng.integers(1, 3))))
    return Keyframes(tuple(bounds), tuple(pairs))
