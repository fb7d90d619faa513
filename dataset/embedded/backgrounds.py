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


class Photo(NamedTuple):
    """A photograph as a background.

    zoom: least and largest magnification. gain: of its brightness. part: of the photograph.
    tones: scales of colours, dark to light, onto which its grey values are mapped; (): as it is.
    """

    name: str
    zoom: tuple[float, float] = (1.0, 1.6)
    gain: float = 1.0
    part: tuple[slice, slice] = (slice(None), slice(None))
    tones: tuple[tuple[tuple[int, int, int], ...], ...] = ()


def draw_background(rng: np.random.Generator, *, height: int, width: int, split: str) -> Background:
    """Returns a background of the given size, `split` being `train` or `val`."""
    weights = np.array([kind[0] for kind in KINDS])
    _, is_surface, kind = KINDS[int(rng.choice(len(KINDS), p=weights / weights.sum()))]
    if isinstance(kind, Photo):
        pixels = from_photo(rng, kind, height=height, width=width, split=split)
    else:
        pixels = kind(rng, height, width)
    return Background(pixels.astype(np.float32), is_surface)


def fractal_noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    cells: tuple[float, float],
    octaves: int,
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


def from_photo(
    rng: np.random.Generator, photo: Photo, *, height: int, width: int, split: str
) -> np.ndarray:
    """Returns a random crop of the split's part of a photograph, mirrored where it is too small."""
    pixels = photograph(photo.name)[photo.part]
    edge = round(TRAIN_SHARE * pixels.shape[1])
    part = pixels[:, :edge] if split == "train" else pixels[:, edge:]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    factor = rng.uniform(*photo.zoom)
    rows, columns = max(8, round(height / factor)), max(8, round(width / factor))
    room = (max(0, rows - part.shape[0]), max(0, columns - part.shape[1]))
    part = np.pad(part, ((0, room[0]), (0, room[1]), (0, 0)), mode="symmetric")
    top = int(rng.integers(part.shape[0] - rows + 1))
    left = int(rng.integers(part.shape[1] - columns + 1))
    crop = Image.fromarray(np.ascontiguousarray(part[top : top + rows, left : left + columns]))
    crop = np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    if photo.tones:
        stops = np.array(photo.tones[int(rng.integers(len(photo.tones)))], np.float32)
        grey = crop.mean(axis=-1)
        low, high = np.percentile(grey, (1, 99))
        tone = np.clip((grey - low) / max(float(high - low), 1.0), 0, 1)
        places = np.linspace(0, 1, len(stops))
        crop = np.stack([np.interp(tone, places, stops[:, c]) for c in range(3)], axis=-1)
    return crop * photo.gain


def _one_of(rng: np.random.Generator, *choices: object) -> np.ndarray:
    return np.array(choices[int(rng.integers(len(choices)))], np.float32)


def _wood(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Planks, along or across the picture, each with its own grain."""
    across = bool(rng.random() < 0.5)
    rows, columns = (width, height) if across else (height, width)
    base = _one_of(
        rng, (176, 124, 76), (132, 84, 50), (206, 168, 122), (96, 66, 46), (150, 132, 116)
    )
    edges = np.linspace(0, rows, int(rng.integers(4, 8))).round().astype(int)
    picture = np.empty((rows, columns, 3), np.float32)
    for first, last in zip(edges[:-1], edges[1:]):
        size = (last - first, columns)
        grain = fractal_noise(rng, *size, cells=(9, 1.6), octaves=4)
        rings = np.sin(5 * fractal_noise(rng, *size, cells=(2.5, 1.2), octaves=2) + 0.4 * grain)
        tone = 1 + rng.normal(0, 0.07) + 0.055 * grain + 0.05 * rings
        picture[first:last] = base * tone[..., None]
        picture[first : first + 1] *= 0.45
    return np.swapaxes(picture, 0, 1) if across else picture


def _felt(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The cloth of a card table."""
    base = _one_of(rng, (24, 104, 62), (30, 72, 132), (122, 28, 44), (70, 48, 110))
    tone = 1 + 0.09 * rng.normal(size=(height, width))
    tone = tone + 0.06 * fractal_noise(rng, height, width, cells=(2, 2), octaves=3)
    return base * tone[..., None]


def _tartan(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A woven cloth of crossing stripes."""
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


def _tiles(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A floor of two sorts of marble, straight or diagonal."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + rng.uniform(0, 100)
    if rng.random() < 0.5:
        y, x = (x + y) * 0.7071, (x - y) * 0.7071
    side = float(rng.uniform(40, 84))
    light, dark = _one_of(
        rng,
        *(((236, 230, 218), (98, 104, 112)), ((226, 222, 214), (150, 62, 52))),
        *(((238, 236, 228), (62, 96, 128)), ((214, 196, 164), (146, 112, 78))),
    )
    even = ((np.floor(y / side) + np.floor(x / side)) % 2)[..., None]
    veins = np.abs(fractal_noise(rng, height, width, cells=(3, 3), octaves=5))[..., None]
    colour = np.where(even, light, dark) * (0.93 + 0.06 * np.minimum(veins, 2))
    grout = np.minimum(*(np.minimum(v % side, side - v % side) for v in (y, x)))[..., None]
    return colour * np.clip(0.6 + grout / 4, 0.6, 1)


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A sky by day or, one in three, at dusk."""
    by_day, at_dusk = ((58, 118, 200), (176, 212, 240)), ((56, 50, 110), (246, 164, 112))
    top, bottom = _one_of(rng, by_day, by_day, at_dusk)
    t = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    noise = fractal_noise(rng, height, width, cells=(4, 2), octaves=6, persistence=0.6)
    cover = np.clip(noise * 0.55 - rng.uniform(-0.1, 0.4), 0, 1)[..., None] * 0.85
    return (top * (1 - t) + bottom * t) * (1 - cover) + np.float32((252, 248, 244)) * cover


def _sand(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A beach with ripples."""
    ripple = np.sin(
        np.linspace(0, rng.uniform(30, 70), height)[:, None]
        + 1.8 * fractal_noise(rng, height, width, cells=(2, 3), octaves=3)
    )
    tone = 1 + 0.045 * ripple + 0.05 * rng.normal(size=(height, width))
    return np.float32((218, 190, 146)) * tone[..., None]


_SUMMER, _AUTUMN = (
    ((14, 34, 12), (58, 110, 40), (176, 204, 110)),
    ((34, 26, 12), (112, 100, 44), (220, 200, 120)),
)
_STONE = ((30, 30, 34), (120, 118, 114), (226, 222, 214))
_WARM_STONE = ((44, 32, 24), (150, 122, 94), (240, 220, 190))
_RED, _SLATE = (
    ((66, 26, 20), (150, 74, 56), (228, 196, 176)),
    ((34, 40, 48), (92, 102, 114), (206, 210, 214)),
)
_SILVER, _MARS = (
    ((18, 18, 22), (108, 108, 113), (203, 203, 207)),
    ((49, 16, 7), (155, 77, 41), (220, 171, 126)),
)
# Without the rocket itself, which would be an object without a box; and a retina seen through the
# pupil, which close up looks like the surface of a planet.
_LAUNCH_SITE, _PLANET = (slice(None), np.r_[:272, 459:640]), (slice(330, 1080), slice(260, 1150))

KINDS: tuple[tuple[float, bool, Photo | Callable[..., np.ndarray]], ...] = (
    (1.6, False, Photo("hubble_deep_field.jpg", zoom=(0.8, 1.7), gain=1.15)),
    (1.1, False, Photo("rocket.jpg", zoom=(1.2, 1.6), gain=1.2, part=_LAUNCH_SITE)),
    (1.1, False, _clouds),
    (1.1, True, Photo("grass.png", tones=(_SUMMER, _SUMMER, _SUMMER, _AUTUMN))),
    (0.8, True, Photo("gravel.png", tones=(_STONE, _WARM_STONE))),
    (0.9, True, Photo("brick.png", tones=(_RED, _SLATE))),
    (1.2, True, Photo("moon.png", zoom=(1.2, 2.0), tones=(_SILVER, _MARS))),
    (0.6, False, Photo("retina.jpg", zoom=(0.6, 1.0), part=_PLANET)),
    (0.35, True, Photo("ihc.png", zoom=(1.0, 1.8), gain=0.92)),
    (1.8, True, _wood),
    (1.3, True, _felt),
    (1.0, True, _tartan),
    (1.3, True, _tiles),
    (0.9, True, _sand),
)
"""Weight, whether it is a surface, and the photograph or the function that draws it."""
