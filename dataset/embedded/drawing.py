"""What the drawn objects of the embedded set share: light, colours, smooth edges.

Objects are drawn at `OVERSAMPLE` times their size and reduced, so that edges are smooth, and lit
from the upper left.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

Rgb = tuple[int, int, int]

OVERSAMPLE = 2
LIGHT = np.array([-0.46, -0.58, 0.67])
"""Direction to the light: x to the right, y down, z to the viewer."""

BRIGHT: tuple[Rgb, ...] = (
    *((226, 52, 48), (250, 190, 36), (38, 132, 214), (36, 164, 92)),
    *((240, 118, 32), (134, 74, 190), (232, 86, 148), (22, 170, 178)),
)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Returns a uniformly random rotation [3, 3], from a random unit quaternion."""
    quaternion = rng.normal(size=4)
    a, b, c, d = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
        ]
    )


def lit(colour: Rgb, light: float) -> Rgb:
    """Scales a colour, and lets it fade to white beyond full light."""
    values = [channel * min(light, 1.0) + 255 * max(0.0, light - 1.0) for channel in colour]
    r, g, b = (int(min(255, max(0, round(value)))) for value in values)
    return r, g, b


def reduced(picture: np.ndarray) -> np.ndarray:
    """Returns an oversampled RGBA picture at its final size."""
    image = Image.fromarray(np.asarray(picture).astype(np.uint8))
    size = (math.ceil(image.width / OVERSAMPLE), math.ceil(image.height / OVERSAMPLE))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def trimmed(picture: np.ndarray) -> np.ndarray:
    """Cuts away the transparent margin."""
    rows = np.nonzero((picture[..., 3] > 4).any(axis=1))[0]
    columns = np.nonzero((picture[..., 3] > 4).any(axis=0))[0]
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
