"""Backgrounds for the embedded data set: crops of photographs and drawn surfaces.

A background says whether it is a surface, on which things lie and throw shadows, or a sky, in
which they float. Training and validation never see the same part of a photograph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataset.embedded.photos import photograph

TRAIN_SHARE = 0.6
"""Training uses this share of each photograph, from the left; validation the rest."""


class Background(NamedTuple):
    """pixels: float32 [h, w, 3], 0 to 255. is_surface: whether objects throw shadows on it."""

    pixels: np.ndarray
    is_surface: bool


def draw_background(rng: np.random.Generator, *, height: int, width: int, split: str) -> Background:
    """Returns a background of the given size, `split` being `train` or `val`."""
    names = list(_KINDS)
    weights = np.array([_KINDS[name][0] for name in names], np.float64)
    kind = names[int(rng.choice(len(names), p=weights / weights.sum()))]
    _, is_surface, draw = _KINDS[kind]
    return Background(draw(rng, height, width, split).astype(np.float32), is_surface)


def fractal_noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    cells: tuple[float, float] = (4, 4),
    octaves: int = 5,
    persistence: float = 0.55,
) -> np.ndarray:
    """Returns float32 [h, w] smooth noise, mean 0, standard deviation 1.

    Args:
      cells: (rows, columns) of the coarsest lattice; unequal numbers give a grain.
      octaves: lattices, each twice as fine as the one before.
      persistence: weight of each lattice relative to the one before.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        rows, columns = (
            int(min(side, max(2, round(count * 2**octave)))) + 1
            for count, side in zip(cells, (height, width))
        )
        lattice = Image.fromarray(rng.normal(size=(rows, columns)).astype(np.float32))
        total += persistence**octave * np.asarray(
            lattice.resize((width, height), Image.Resampling.BICUBIC)
        )
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


# --- photographs ----------------------------------------------------------------------------------


def _photo_crop(
    rng: np.random.Generator,
    pixels: np.ndarray,
    *,
    height: int,
    width: int,
    split: str,
    zoom: tuple[float, float] = (1.0, 1.6),
) -> np.ndarray:
    """Returns a random crop of the split's part of a photograph, mirrored where it is too small."""
    edge = round(TRAIN_SHARE * pixels.shape[1])
    part = pixels[:, :edge] if split == "train" else pixels[:, edge:]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    factor = rng.uniform(*zoom)
    rows, columns = max(8, round(height / factor)), max(8, round(width / factor))
    room = (max(0, rows - part.shape[0]), max(0, columns - part.shape[1]))
    part = np.pad(part, ((0, room[0]), (0, room[1]), (0, 0)), mode="symmetric")
    top = int(rng.integers(part.shape[0] - rows + 1))
    left = int(rng.integers(part.shape[1] - columns + 1))
    crop = Image.fromarray(np.ascontiguousarray(part[top : top + rows, left : left + columns]))
    return np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _toned(pixels: np.ndarray, stops: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """Maps the grey values of a picture onto a scale of colours, dark to light."""
    grey = pixels.mean(axis=-1)
    low, high = np.percentile(grey, (1, 99))
    tone = np.clip((grey - low) / max(float(high - low), 1.0), 0, 1)
    places = np.linspace(0, 1, len(stops))
    colours = np.array(stops, np.float32)
    return np.stack([np.interp(tone, places, colours[:, c]) for c in range(3)], axis=-1)


def _hubble(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    pixels = photograph("hubble_deep_field.jpg")
    return _photo_crop(rng, pixels, height=height, width=width, split=split, zoom=(0.8, 1.7)) * 1.15


def _evening_sky(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    """The launch site without its rocket, which would be an object without a box."""
    pixels = photograph("rocket.jpg")
    part = pixels[:, :272] if split == "train" else pixels[:, 378:]
    factor = max(height / part.shape[0], width / part.shape[1]) * rng.uniform(1.0, 1.25)
    rows, columns = round(height / factor), round(width / factor)
    top = int(rng.integers(part.shape[0] - rows + 1))
    left = int(rng.integers(part.shape[1] - columns + 1))
    crop = Image.fromarray(np.ascontiguousarray(part[top : top + rows, left : left + columns]))
    return np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC), np.float32) * 1.2


def _grass(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    crop = _photo_crop(rng, photograph("grass.png"), height=height, width=width, split=split)
    summer = ((14, 34, 12), (58, 110, 40), (176, 204, 110))
    autumn = ((34, 26, 12), (112, 100, 44), (220, 200, 120))
    return _toned(crop, summer if rng.random() < 0.75 else autumn)


def _gravel(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    crop = _photo_crop(rng, photograph("gravel.png"), height=height, width=width, split=split)
    grey = ((30, 30, 34), (120, 118, 114), (226, 222, 214))
    warm = ((44, 32, 24), (150, 122, 94), (240, 220, 190))
    return _toned(crop, grey if rng.random() < 0.5 else warm)


def _brick(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    crop = _photo_crop(rng, photograph("brick.png"), height=height, width=width, split=split)
    red = ((66, 26, 20), (150, 74, 56), (228, 196, 176))
    slate = ((34, 40, 48), (92, 102, 114), (206, 210, 214))
    return _toned(crop, red if rng.random() < 0.6 else slate)


def _moon(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    crop = _photo_crop(
        rng, photograph("moon.png"), height=height, width=width, split=split, zoom=(1.2, 2.0)
    )
    silver = ((20, 20, 24), (120, 120, 126), (226, 226, 230))
    mars = ((54, 18, 8), (172, 86, 46), (244, 190, 140))
    return _toned(crop, silver if rng.random() < 0.6 else mars) * 0.9


def _red_planet(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    # A retina seen through the pupil; close up it looks like the surface of a planet.
    pixels = photograph("retina.jpg")[330:1080, 260:1150]
    return _photo_crop(rng, pixels, height=height, width=width, split=split, zoom=(0.6, 1.0))


def _wallpaper(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    pixels = photograph("ihc.png")
    crop = _photo_crop(rng, pixels, height=height, width=width, split=split, zoom=(1.0, 1.8))
    return crop[..., rng.permutation(3)] * 0.92


# --- drawn surfaces -------------------------------------------------------------------------------


def _wood(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    """Planks, along or across the picture, each with its own grain."""
    del split
    across = bool(rng.random() < 0.5)
    rows, columns = (width, height) if across else (height, width)
    base = np.array(
        ((176, 124, 76), (132, 84, 50), (206, 168, 122), (96, 66, 46), (150, 132, 116))[
            int(rng.integers(5))
        ],
        np.float32,
    )
    planks = int(rng.integers(3, 7))
    edges = np.round(np.linspace(0, rows, planks + 1)).astype(int)
    picture = np.empty((rows, columns, 3), np.float32)
    for first, last in zip(edges[:-1], edges[1:]):
        size = (last - first, columns)
        grain = fractal_noise(rng, *size, cells=(9, 1.6), octaves=4)
        rings = np.sin(5 * fractal_noise(rng, *size, cells=(2.5, 1.2), octaves=2) + 0.4 * grain)
        tone = 1 + rng.normal(0, 0.07) + 0.055 * grain + 0.05 * rings
        picture[first:last] = base * tone[..., None]
        picture[first : first + 1] *= 0.45
        picture[first + 1 : first + 2] *= 0.8
    return np.swapaxes(picture, 0, 1) if across else picture


def _felt(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    """The cloth of a card table."""
    del split
    base = ((24, 104, 62), (30, 72, 132), (122, 28, 44), (70, 48, 110))[int(rng.integers(4))]
    tone = 1 + 0.09 * rng.normal(size=(height, width, 1))
    tone = tone + 0.06 * fractal_noise(rng, height, width, cells=(2, 2), octaves=3)[..., None]
    return np.array(base, np.float32) * tone


def _tartan(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    """A woven cloth of crossing stripes."""
    del split
    base = rng.uniform(40, 215, 3)
    rows, columns = np.tile(base, (height, 1)), np.tile(base, (width, 1))
    period = int(rng.integers(48, 110))
    for _ in range(int(rng.integers(3, 6))):
        offset, breadth = int(rng.integers(period)), int(rng.integers(3, period // 3))
        colour = rng.uniform(20, 245, 3)
        for lines in (rows, columns):
            lines[(np.arange(len(lines)) - offset) % period < breadth] = colour
    weave = (np.add.outer(np.arange(height), np.arange(width)) // 2 % 2)[..., None]
    cloth = np.where(weave, rows[:, None], columns[None, :]) * 0.6
    cloth = cloth + 0.2 * (rows[:, None] + columns[None, :])
    return cloth * (1 + 0.04 * rng.normal(size=(height, width, 1)))


def _tiles(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    """A floor of two sorts of marble, straight or diagonal."""
    del split
    y, x = np.mgrid[:height, :width].astype(np.float32) + rng.uniform(0, 100)
    if rng.random() < 0.5:
        y, x = (x + y) * 0.7071, (x - y) * 0.7071
    side = float(rng.uniform(40, 84))
    light, dark = (
        ((236, 230, 218), (98, 104, 112)),
        ((226, 222, 214), (150, 62, 52)),
        ((238, 236, 228), (62, 96, 128)),
        ((214, 196, 164), (146, 112, 78)),
    )[int(rng.integers(4))]
    even = ((np.floor(y / side) + np.floor(x / side)) % 2)[..., None]
    veins = np.abs(fractal_noise(rng, height, width, cells=(3, 3), octaves=5))[..., None]
    colour = np.where(even, np.array(light, np.float32), np.array(dark, np.float32))
    colour = colour * (0.93 + 0.06 * np.minimum(veins, 2))
    grout = np.minimum(*(np.minimum(v % side, side - v % side) for v in (y, x)))[..., None]
    return colour * np.clip(0.6 + grout / 4, 0.6, 1)


def _clouds(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    """A sky by day or at dusk."""
    del split
    top, bottom = (((58, 118, 200), (176, 212, 240)), ((56, 50, 110), (246, 164, 112)))[
        int(rng.random() < 0.35)
    ]
    t = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    sky = np.array(top, np.float32) * (1 - t) + np.array(bottom, np.float32) * t
    noise = fractal_noise(rng, height, width, cells=(4, 2), octaves=6, persistence=0.6)
    cover = np.clip(noise * 0.55 - rng.uniform(-0.1, 0.4), 0, 1)[..., None] * 0.85
    return sky * (1 - cover) + np.array((252, 248, 244), np.float32) * cover


def _sand(rng: np.random.Generator, height: int, width: int, split: str) -> np.ndarray:
    """A beach with ripples."""
    del split
    ripple = np.sin(
        np.linspace(0, rng.uniform(30, 70), height)[:, None]
        + 1.8 * fractal_noise(rng, height, width, cells=(2, 3), octaves=3)
    )
    tone = 1 + 0.045 * ripple + 0.05 * rng.normal(size=(height, width))
    return np.array((218, 190, 146), np.float32) * tone[..., None]


_Draw = Callable[[np.random.Generator, int, int, str], np.ndarray]
_KINDS: dict[str, tuple[float, bool, _Draw]] = {
    "hubble": (1.6, False, _hubble),
    "evening sky": (1.1, False, _evening_sky),
    "clouds": (1.1, False, _clouds),
    "grass": (1.1, True, _grass),
    "gravel": (0.8, True, _gravel),
    "brick": (0.9, True, _brick),
    "moon": (1.2, True, _moon),
    "red planet": (0.6, False, _red_planet),
    "wallpaper": (0.35, True, _wallpaper),
    "wood": (1.8, True, _wood),
    "felt": (1.3, True, _felt),
    "tartan": (1.0, True, _tartan),
    "tiles": (1.3, True, _tiles),
    "sand": (0.9, True, _sand),
}
"""Weight, whether it is a surface, and the function that draws it."""
