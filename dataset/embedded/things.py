"""Drawn objects of the embedded set: a beach ball and a rocket.

Each function returns one uint8 RGBA picture of its object, varied by the random generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dataset.embedded.drawing import (
    BRIGHT,
    LIGHT,
    OVERSAMPLE,
    Rgb,
    lit,
    random_rotation,
    reduced,
    trimmed,
)


def beach_ball(rng: np.random.Generator, *, size: int = 184) -> np.ndarray:
    """Returns a ball of six panels, turned at random."""
    n = size * OVERSAMPLE
    axis = ((np.arange(n) + 0.5) / n * 2 - 1).astype(np.float32)
    x, y = axis[None, :], axis[:, None]
    square = np.minimum(x * x + y * y, 1)
    normals = np.stack(np.broadcast_arrays(x, y, np.sqrt(1 - square)), axis=-1)
    turned = normals @ random_rotation(rng).astype(np.float32)
    longitude = (np.arctan2(turned[..., 1], turned[..., 0]) / (2 * np.pi) + 1) % 1 * 6
    picked = rng.permutation(len(BRIGHT))
    white = (246, 246, 240)
    if rng.random() < 0.6:
        panels = [BRIGHT[picked[0]], white, BRIGHT[picked[1]], white, BRIGHT[picked[2]], white]
    else:
        panels = [BRIGHT[k] for k in picked[:3]] * 2
    colour = np.array(panels, np.float32)[longitude.astype(int) % 6]
    seam = np.abs(longitude - np.round(longitude)) * np.hypot(turned[..., 0], turned[..., 1])
    colour *= np.clip(0.72 + seam * 12, 0.72, 1)[..., None]
    colour[np.abs(turned[..., 2]) > 0.965] = white
    facing = normals @ LIGHT.astype(np.float32)
    # The light mirrored at the surface, its part towards the viewer (Phong, 1975).
    gloss = np.clip(2 * facing * normals[..., 2] - LIGHT[2], 0, 1) ** 36
    colour = colour * (0.36 + 0.72 * np.clip(facing, 0, 1))[..., None] + 150 * gloss[..., None]
    alpha = np.clip((1 - np.hypot(x, y)) * n / 2 + 0.5, 0, 1)
    return reduced(np.dstack([np.clip(colour, 0, 255), 255 * alpha]))


def rocket(rng: np.random.Generator, *, height: int = 264) -> np.ndarray:
    """Returns a rocket pointing up, with or without its flame."""
    h = height * OVERSAMPLE
    w = round(h * 0.52)
    accent, second = (BRIGHT[k] for k in rng.permutation(len(BRIGHT))[:2])
    body = ((244, 243, 238), (206, 212, 220), (250, 226, 190))[int(rng.integers(3))]
    has_flame = bool(rng.random() < 0.65)
    stretch = 0.76 if has_flame else 0.97
    image = Image.new("RGBA", (w, h))
    draw = ImageDraw.Draw(image)

    def place(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Maps (-0.5..0.5 of the height, 0..1 down the hull) to pixels."""
        return [(w / 2 + x * h * stretch, y * h * stretch) for x, y in points]

    if has_flame:
        _draw_flame(draw, rng, w=w, h=h, hull_end=stretch)
    reach = rng.uniform(0.24, 0.31)
    for side, light in ((-1, 1.0), (1, 0.62)):
        fin = [(0.09, 0.66), (0.2, 0.74), (reach, 0.98), (reach - 0.02, 1.0), (0.1, 0.9)]
        draw.polygon(place([(side * x, y) for x, y in fin]), fill=(*lit(accent, light), 255))
    draw.polygon(
        place([(-0.075, 0.9), (0.075, 0.9), (0.1, 0.985), (-0.1, 0.985)]), fill=(58, 60, 66, 255)
    )
    hull = _rocket_hull(
        w, h, stretch, body=body, accent=accent, second=second, bands=int(rng.integers(3))
    )
    image.alpha_composite(Image.fromarray(hull))
    draw = ImageDraw.Draw(image)
    for k in range(int(rng.integers(1, 3))):
        _draw_window(
            draw, (w / 2, (0.36 + 0.17 * k) * h * stretch), (0.062 - 0.014 * k) * h * stretch
        )
    draw.polygon(
        place([(-0.014, 0.7), (0.014, 0.7), (0.02, 0.985), (-0.02, 0.985)]),
        fill=(*lit(accent, 0.85), 255),
    )
    return trimmed(reduced(np.asarray(image)))


def _rocket_hull(
    w: int, h: int, stretch: float, *, body: Rgb, accent: Rgb, second: Rgb, bands: int
) -> np.ndarray:
    """Returns uint8 RGBA [h, w]: nose, body and bands, shaded as a round hull."""
    x = (np.arange(w) + 0.5 - w / 2) / (h * stretch)
    t = (np.arange(h) + 0.5) / (h * stretch)
    half = np.where(
        t < 0.42,
        0.135 * np.clip(t / 0.42, 0, 1) ** 0.62,
        0.135 - 0.055 * np.clip((t - 0.42) / 0.5, 0, 1) ** 1.6,
    )
    half = np.where((t > 0.008) & (t < 0.925), half, 0.0)
    across = x[None, :] / np.maximum(half[:, None], 1e-6)
    alpha = np.clip((half[:, None] - np.abs(x[None, :])) * h * stretch + 0.5, 0, 1) * (
        half[:, None] > 0
    )
    across = np.clip(across, -1, 1)
    light = np.clip(across * LIGHT[0] + np.sqrt(1 - across**2) * LIGHT[2], 0, 1)
    shade = 0.38 + 0.8 * light + 0.35 * np.exp(-(((across + 0.45) / 0.16) ** 2))
    colour = np.empty((h, w, 3))
    colour[:] = body
    colour[t < 0.24] = accent
    colour[t > 0.86] = accent
    for k in range(bands):
        band = (t > 0.66 + 0.07 * k) & (t < 0.695 + 0.07 * k)
        colour[band] = second
    colour[(t > 0.24) & (t < 0.247)] = (120, 122, 126)
    pixels = np.clip(colour * shade[..., None], 0, 255)
    return np.dstack([pixels, 255 * alpha]).astype(np.uint8)


def _draw_window(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float) -> None:
    x, y = centre
    for share, colour in ((1.0, (120, 124, 132)), (0.82, (226, 228, 232)), (0.66, (40, 96, 150))):
        r = radius * share
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, 255))
    r = radius * 0.42
    draw.ellipse((x - 0.9 * r, y - 1.0 * r, x + 0.5 * r, y + 0.2 * r), fill=(150, 206, 240, 255))


def _draw_flame(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, *, w: int, h: int, hull_end: float
) -> None:
    top, length = 0.97 * hull_end * h, (1 - 0.97 * hull_end) * h
    for width, reach, colour in (
        (0.105, 0.98, (246, 110, 30)),
        (0.078, 0.76, (255, 176, 40)),
        (0.046, 0.5, (255, 244, 190)),
    ):
        t = np.linspace(0, 1, 24)
        profile = width * h * hull_end * (1 - t**1.7) * (1 + 0.28 * np.sin(np.pi * t))
        sway = rng.normal(0, 0.006 * h) * t
        y = top + reach * length * t
        left = list(zip(w / 2 - profile + sway, y))
        right = list(zip(w / 2 + profile + sway, y))
        draw.polygon(left + right[::-1], fill=(*colour, 255))
