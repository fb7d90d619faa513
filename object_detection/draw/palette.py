"""Colours of classes in pictures: stable, far apart to the eye, readable under text."""

from __future__ import annotations

import functools

import numpy as np

Color = tuple[int, int, int]

DARK: Color = (17, 19, 24)
LIGHT: Color = (255, 255, 255)

_SIZE = 96
_FIRST = (255, 90, 60)


@functools.lru_cache(maxsize=1)
def palette() -> tuple[Color, ...]:
    """Returns 96 well separated colours, the most different ones first.

    Farthest-point order in OKLab (B. Ottosson, 2020), a space whose distances are close to the
    differences one sees, among colours of middle lightness and clear hue.
    """
    levels = np.linspace(0, 255, 18)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > 0.64) & (lab[:, 0] < 0.91) & (chroma > 0.11)
    # On thin lines, hue and chroma tell colours apart better than lightness does.
    rgb, lab = rgb[usable], lab[usable] * (0.6, 1.0, 1.0)
    chosen = [int(np.argmin(np.abs(rgb - _FIRST).sum(axis=1)))]
    distance = np.linalg.norm(lab - lab[chosen[0]], axis=1)
    while len(chosen) < _SIZE:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return tuple((int(r), int(g), int(b)) for r, g, b in np.round(rgb[chosen]))


def class_color(class_id: int) -> Color:
    """Returns the colour of a class, the same in every picture."""
    colors = palette()
    return colors[int(class_id) % len(colors)]


def text_color_on(background: Color) -> Color:
    """Returns dark or light text, whichever has the larger contrast on the background."""
    return max(DARK, LIGHT, key=lambda text: contrast(text, background))


def contrast(a: Color, b: Color) -> float:
    """Returns the contrast ratio of two colours, 1 to 21 (WCAG 2.1)."""
    low, high = sorted(
        float(_linear(np.asarray(color, np.float64)) @ (0.2126, 0.7152, 0.0722)) + 0.05
        for color in (a, b)
    )
    return high / low


def _linear(rgb: np.ndarray) -> np.ndarray:
    """Turns sRGB 0..255 into linear light 0..1."""
    value = rgb / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Turns sRGB [n, 3], 0..255, into OKLab [n, 3] (matrices of Ottosson's definition)."""
    cones = _linear(rgb) @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
