"""Objects cut out of the photographs that the scikit-image wheel carries.

Only files inside the installed package are read; nothing is downloaded. Outlines were traced by
hand, in pixels of the photographs. Every cut-out is a uint8 RGBA array.

`skimage.data` also knows photographs that it would fetch from the network. `photograph` opens the
package's own data folder, so that such a name fails here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageFilter

ATTRIBUTION = """\
The pictures of this data set are composed by dataset/embedded/make_set.py. Drawn objects (rocket,
beach ball, die, playing card) and drawn backgrounds are the program's own. Photographs come from
the data folder of the scikit-image package (scikit-image.org), with these notes there:

astronaut.png           Eileen Collins, NASA. No known copyright restrictions, public domain.
chelsea.png             Chelsea the cat, Stefan van der Walt. CC0.
coffee.png              Pikolo Espresso Bar, Rachel Michetti. CC0.
coins.png               Greek coins from Pompeii, Brooklyn Museum. No known copyright restrictions.
hubble_deep_field.jpg   NASA. Public domain.
rocket.jpg              Falcon 9 with DSCOVR, SpaceX. Public domain.
retina.jpg              Haggstrom, Medical gallery 2014. CC0, public domain.
moon.png                Surface of the moon. The package names neither author nor restriction.
ihc.png                 Center for Microscopy and Molecular Imaging. No known restrictions.
brick.png, gravel.png   CC0Textures (Bricks25, Gravel04). CC0.
grass.png               linolafett, DeviantArt. CC0.
"""

_OUTLINE_SCALE = 4

# The bust stops at the helmet and is closed by an ellipse below.
_ASTRONAUT = (
    *((186, 149), (184, 141), (181, 131), (175, 121), (165, 111), (158, 98), (155, 84), (155, 68)),
    *((160, 54), (171, 45), (184, 39), (194, 29), (208, 20), (228, 16), (250, 19), (267, 25)),
    *((283, 37), (292, 52), (298, 70), (299, 88), (295, 105), (287, 117), (278, 126), (272, 133)),
    *((266, 136), (263, 150), (258, 162), (254, 175), (268, 183), (281, 194), (291, 206)),
    *((298, 219), (303, 235), (319, 251), (333, 262), (344, 281), (351, 305), (357, 330)),
    *((363, 350), (363, 512), (24, 512), (27, 365), (32, 335), (39, 305), (46, 285), (56, 265)),
    *((67, 250), (81, 235), (97, 224), (111, 214), (119, 206), (116, 197), (116, 188)),
    *((122, 183), (129, 171), (146, 158), (165, 150)),
)
_ASTRONAUT_BASE = (182, 268, 162, 166)
"""Ellipse (x, y, half width, half height) that rounds off the bust below its centre."""

_CUP_SAUCER = (277.3, 220.3, 199.0, 165.2, 0.11)
_CUP_RIM = (289.6, 111.9, 116.2, 93.5, 0.04)
_CUP_INSIDE = (211.0, 96.0, 113.0, 91.0, 0.04)
"""The rim's ellipse again, in pixels of the cut-out."""
_CUP_SPOON = (
    *((396, 75), (403, 68), (412, 67), (420, 69), (423, 76), (418, 98), (413, 116), (400, 140)),
)

# The photograph cuts the ears; above it the head continues in mirrored fur (negative y).
_CAT_MIRRORED_ROWS = 96
_CAT = (
    *((36, 20), (34, 60), (35, 100), (37, 130), (45, 165), (61, 192), (80, 213), (105, 235)),
    *((135, 255), (165, 270), (200, 280), (240, 285), (264, 283), (286, 271), (304, 250)),
    *((317, 225), (331, 205), (345, 185), (355, 163), (360, 140), (360, 115), (356, 90)),
    *((353, 73), (363, 66), (374, 51), (385, 27), (393, 0), (394, -28), (388, -56), (381, -72)),
    *((366, -60), (346, -50), (320, -46), (290, -51), (250, -56), (200, -58), (150, -54)),
    *((120, -50), (100, -61), (76, -79), (58, -85), (47, -70), (41, -40), (38, 0)),
)

_COATS = ((1.0, 1.0, 0), (1.35, 0.95, 0), (0.35, 0.95, 0), (0.6, 0.7, 0), (0.7, 1.05, 22))
"""Saturation, gain and lift: as it is, ginger, grey, dark, pale."""

# Centre x, y, half axes, angle.
_COINS = (
    *((334.7, 43.5, 29.6, 28.0, 1.56), (155.3, 50.8, 23.5, 22.4, 1.27)),
    *((215.2, 51.1, 23.6, 21.8, 1.47), (276.2, 52.4, 20.6, 19.0, 1.31)),
    *((44.2, 54.3, 22.4, 19.2, -1.33), (100.2, 56.1, 19.7, 17.8, 1.49)),
    *((270.6, 118.8, 25.5, 24.0, 1.51), (44.7, 124.2, 20.6, 19.6, -0.91)),
    *((205.3, 123.7, 20.4, 18.9, -1.02), (336.2, 124.5, 19.6, 19.1, -0.82)),
    *((102.3, 125.7, 19.4, 18.2, -0.95), (153.5, 127.2, 19.7, 17.4, -1.47)),
    *((347.0, 186.7, 32.2, 31.1, -1.57), (212.4, 193.1, 23.9, 23.1, 1.45)),
    *((273.5, 193.6, 22.9, 20.8, 1.03), (101.7, 195.6, 22.0, 21.3, -1.57)),
    *((43.7, 197.4, 19.4, 18.5, 0.61), (154.1, 197.7, 19.4, 18.9, -1.57)),
    *((45.9, 259.8, 28.5, 27.5, -1.02), (172.3, 261.2, 29.1, 25.7, 1.49)),
    *((300.6, 263.2, 26.5, 24.0, -0.93), (244.0, 263.3, 24.2, 23.2, -1.12)),
    *((113.9, 265.5, 21.5, 21.0, 1.17), (358.2, 267.9, 22.4, 20.3, -1.54)),
)
_METALS = (
    ((40, 24, 6), (190, 140, 48), (255, 236, 170)),
    ((26, 28, 32), (146, 150, 156), (246, 248, 250)),
    ((40, 16, 8), (166, 92, 52), (250, 206, 166)),
)
"""Dark, middle and light tone of gold, silver and copper."""


@functools.lru_cache(maxsize=64)
def photograph(name: str) -> np.ndarray:
    """Returns a bundled photograph, uint8 [h, w, 3].

    Raises:
      FileNotFoundError: the installed scikit-image does not carry it.
    """
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: the installed scikit-image does not carry {name}")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def astronaut(rng: np.random.Generator) -> np.ndarray:
    """Returns a bust of the astronaut, in her orange suit or one of another colour."""
    picture = _astronaut_cutout()
    if rng.random() >= 0.35:
        return picture
    is_suit = np.arange(len(picture))[:, None] >= round(0.43 * len(picture))  # below the face
    return _hue_turned(
        picture, is_suit, turn=rng.uniform(0.3, 0.75), hues=(250, 26), least_saturation=70
    )


@functools.lru_cache(maxsize=1)
def _astronaut_cutout() -> np.ndarray:
    pixels = photograph("astronaut.png")
    alpha = _outline_alpha(pixels.shape[:2], _ASTRONAUT)
    x, y, half_width, half_height = _ASTRONAUT_BASE
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    radius = np.hypot((columns - x) / half_width, (rows - y) / half_height)
    base = np.where(rows > y, np.clip((1 - radius) * half_height + 0.5, 0, 1), 1)
    return _cropped(pixels, alpha * base)


def cat(rng: np.random.Generator) -> np.ndarray:
    """Returns the cat's head, ginger, grey, dark or pale."""
    picture = _cat_cutout()
    colour = picture[..., :3].astype(np.float32)
    grey = colour @ np.array([0.3, 0.59, 0.11], np.float32)
    saturation, gain, lift = _COATS[int(rng.integers(len(_COATS)))]
    toned = grey[..., None] + (colour - grey[..., None]) * saturation
    toned = np.clip(toned * gain + lift, 0, 255).astype(np.uint8)
    return np.dstack([toned, picture[..., 3]])


@functools.lru_cache(maxsize=1)
def _cat_cutout() -> np.ndarray:
    pixels = photograph("chelsea.png")
    pixels = np.concatenate([pixels[1 : _CAT_MIRRORED_ROWS + 1][::-1], pixels])
    points = [(x, y + _CAT_MIRRORED_ROWS) for x, y in _CAT]
    alpha = np.asarray(
        Image.fromarray(np.uint8(255 * _outline_alpha(pixels.shape[:2], points))).filter(
            ImageFilter.GaussianBlur(1.2)
        )
    )
    return _cropped(pixels, alpha / 255.0)


def coffee_cup(rng: np.random.Generator) -> np.ndarray:
    """Returns the espresso cup on its saucer, red, or with a glaze of another colour."""
    picture = _cup_cutout()
    if rng.random() >= 0.4:
        return picture
    outside = 1 - _outline_alpha(picture.shape[:2], _ellipse_points(*_CUP_INSIDE))
    return _hue_turned(
        picture, outside, turn=rng.uniform(0.08, 0.9), hues=(236, 24), least_saturation=60
    )


@functools.lru_cache(maxsize=1)
def _cup_cutout() -> np.ndarray:
    pixels = photograph("coffee.png")
    outlines = (_ellipse_points(*_CUP_SAUCER), _ellipse_points(*_CUP_RIM), _CUP_SPOON)
    alphas = [_outline_alpha(pixels.shape[:2], outline) for outline in outlines]
    return _cropped(pixels, np.maximum.reduce(alphas))


def coin(rng: np.random.Generator) -> np.ndarray:
    """Returns one of 24 ancient coins, of gold, silver or copper."""
    # The larger coins, sharper in the photograph, come up more often.
    areas = np.array([major * minor for _, _, major, minor, _ in _COINS])
    x, y, major, minor, angle = _COINS[int(rng.choice(len(_COINS), p=areas / areas.sum()))]
    reach = int(major) + 3
    left, top = int(x) - reach, int(y) - reach
    photo = Image.fromarray(photograph("coins.png")).convert("L")
    # Sampled up before it is cut, so that the rim stays round.
    zoom = 3
    part = photo.crop((left, top, left + 2 * reach, top + 2 * reach)).resize(
        (2 * reach * zoom, 2 * reach * zoom), Image.Resampling.LANCZOS
    )
    grey = np.asarray(part, np.float32)
    points = _ellipse_points(
        (x - left) * zoom, (y - top) * zoom, (minor - 0.5) * zoom, (major - 0.5) * zoom, -angle
    )
    alpha = _outline_alpha(grey.shape, points)
    inside = grey[alpha > 0.5]
    low, high = np.percentile(inside, (1, 99))
    tone = np.clip((grey - low) / max(high - low, 1), 0, 1) * 0.68 + 0.22
    rows, columns = np.mgrid[: grey.shape[0], : grey.shape[1]] / grey.shape[0] - 0.5
    tone -= 0.22 * (rows + columns) + 0.5 * np.clip(np.hypot(rows, columns) - 0.4, 0, None)
    dark, middle, light = _METALS[int(rng.choice(3, p=(0.45, 0.35, 0.2)))]
    stops = np.array([dark, middle, light], np.float32)
    colour = np.stack([np.interp(tone, (0, 0.5, 1), stops[:, c]) for c in range(3)], axis=-1)
    return _cropped(colour.astype(np.uint8), alpha)


def _outline_alpha(size: tuple[int, ...], points: Iterable[tuple[float, float]]) -> np.ndarray:
    """Returns float32 [h, w], the share of each pixel inside a polygon of (x, y) points."""
    height, width = size[:2]
    scale = _OUTLINE_SCALE
    mask = Image.new("L", (width * scale, height * scale))
    ImageDraw.Draw(mask).polygon([(x * scale, y * scale) for x, y in points], fill=255)
    return np.asarray(mask.resize((width, height), Image.Resampling.BOX), np.float32) / 255.0


def _ellipse_points(
    x: float, y: float, half_a: float, half_b: float, angle: float
) -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    across, along = half_a * np.cos(t), half_b * np.sin(t)
    return list(
        zip(
            x + across * np.cos(angle) - along * np.sin(angle),
            y + across * np.sin(angle) + along * np.cos(angle),
        )
    )


def _cropped(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Joins colour and opacity [0, 1] and cuts away the transparent margin."""
    picture = Image.fromarray(np.dstack([pixels, np.uint8(np.round(255 * alpha))]))
    return np.asarray(picture.crop(picture.getchannel("A").getbbox()))


def _hue_turned(
    picture: np.ndarray,
    where: np.ndarray,
    *,
    turn: float,
    hues: tuple[int, int],
    least_saturation: int,
) -> np.ndarray:
    """Turns hues from first to last (0..255, past 255 to 0) by a share of the circle.

    Args:
      where: share of each pixel that may change, broadcast to [h, w].
    """
    hsv = np.array(Image.fromarray(picture[..., :3]).convert("HSV"))
    hue, saturation = hsv[..., 0].astype(int), hsv[..., 1].astype(np.float32)
    is_meant = (hue >= hues[0]) | (hue <= hues[1])
    weight = where * is_meant * np.clip((saturation - least_saturation) / 40, 0, 1)
    hsv[..., 0] = (hue + round(255 * turn)) % 256
    turned = np.asarray(Image.fromarray(hsv, mode="HSV").convert("RGB"), np.float32)
    mixed = picture[..., :3] + (turned - picture[..., :3]) * weight[..., None]
    return np.dstack([mixed.astype(np.uint8), picture[..., 3]])
