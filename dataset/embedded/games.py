"""Drawn objects of the embedded set: a die and the playing cards.

Each function returns one uint8 RGBA picture of its object, varied by the random generator.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset.embedded.drawing import LIGHT, OVERSAMPLE, Rgb, lit, random_rotation, reduced, trimmed

_RED, _BLACK = (200, 24, 36), (22, 24, 28)


def die(rng: np.random.Generator, *, size: int = 176) -> np.ndarray:
    """Returns a die with one to three of its faces in view."""
    n = size * OVERSAMPLE
    base, pip = _die_colours(rng)
    rotation = random_rotation(rng)
    # Row k is where axis k points; seen straight onto a face, a die is only a square.
    while np.abs(rotation[:, 2]).max() > 0.94:
        rotation = random_rotation(rng)
    centre, radius = n / 2, n * 0.29
    image = Image.new("RGBA", (n, n))
    draw = ImageDraw.Draw(image)

    def on_screen(points: np.ndarray) -> list[tuple[float, float]]:
        """Projects [k, 3] points with a camera six half edges away."""
        seen = points @ rotation
        reach = 6.0 / (6.0 - seen[:, 2])
        return [
            (centre + radius * f * p[0], centre + radius * f * p[1]) for f, p in zip(reach, seen)
        ]

    outline = np.concatenate([_face_points(_rounded_square(0.97, 0.3), f) for f in range(6)])
    hull = _convex_hull(np.array(on_screen(outline)))
    edge = lit(base, 0.92)
    draw.polygon([tuple(point) for point in hull], fill=(*edge, 255))
    for face in range(6):
        normal = _face_points(np.zeros((1, 2)), face)[0] @ rotation
        # With perspective a face shows when it looks at the camera's place, not its direction.
        if normal @ (np.array([0, 0, 6.0]) - normal) <= 0.02:
            continue
        light = 0.5 + 0.58 * max(0.0, float(normal @ LIGHT))
        draw.polygon(
            on_screen(_face_points(_rounded_square(0.93, 0.28), face)), fill=lit(base, light)
        )
        for centre_2d in _PIPS[_FACE_VALUES[face]]:
            ring = _circle(0.185) + np.array(centre_2d) * 0.52
            draw.polygon(on_screen(_face_points(ring, face)), fill=lit(pip, 0.55 + 0.45 * light))
            hollow = _circle(0.12) + np.array(centre_2d) * 0.52 + 0.03
            draw.polygon(on_screen(_face_points(hollow, face)), fill=lit(pip, 0.8 + 0.45 * light))
    return trimmed(reduced(np.asarray(image)))


def playing_card(rng: np.random.Generator, *, height: int = 232) -> np.ndarray:
    """Returns a card of the 52, upright."""
    rank = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")[int(rng.integers(13))]
    suit = ("heart", "spade", "diamond", "club")[int(rng.integers(4))]
    colour = _RED if suit in ("heart", "diamond") else _BLACK
    h = height * OVERSAMPLE
    w = round(h * 0.70)
    image = Image.new("RGBA", (w, h))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, w - 1, h - 1), radius=0.07 * h, fill=(176, 172, 164, 255))
    inset = 0.008 * h
    draw.rounded_rectangle(
        (inset, inset, w - 1 - inset, h - 1 - inset), radius=0.065 * h, fill=(252, 251, 246, 255)
    )
    _draw_card_face(draw, rank, suit, w=w, h=h, colour=colour)
    _draw_card_corner(draw, rank, suit, w=w, h=h, colour=colour)
    # The corner again at the lower right, upside down.
    left, top = round(0.76 * w), round(0.72 * h)
    image.paste(image.rotate(180).crop((left, top, w, h)), (left, top))
    return reduced(np.asarray(image))


_FACE_VALUES = (1, 6, 2, 5, 3, 4)
_PIPS: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0, 0),),
    2: ((-1, -1), (1, 1)),
    3: ((-1, -1), (0, 0), (1, 1)),
    4: ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    5: ((-1, -1), (-1, 1), (0, 0), (1, -1), (1, 1)),
    6: ((-1, -1), (-1, 0), (-1, 1), (1, -1), (1, 0), (1, 1)),
}


def _die_colours(rng: np.random.Generator) -> tuple[Rgb, Rgb]:
    bodies: tuple[Rgb, ...] = (
        *((250, 247, 238), (250, 247, 238), (198, 30, 40), (32, 84, 170)),
        *((34, 120, 72), (40, 40, 46), (236, 176, 34)),
    )
    base = bodies[int(rng.integers(len(bodies)))]
    return base, (28, 28, 32) if sum(base) > 420 else (250, 248, 240)


def _face_points(points: np.ndarray, face: int) -> np.ndarray:
    """Lays [k, 2] points of a face's plane on the cube of half edge 1: [k, 3]."""
    axis, sign = face // 2, 1 - 2 * (face % 2)
    columns = [points[:, 0], points[:, 1]]
    columns.insert(axis, np.full(len(points), float(sign)))
    return np.column_stack(columns)


def _rounded_square(half: float, radius: float) -> np.ndarray:
    quarter = np.linspace(0, np.pi / 2, 9)
    corner = (half - radius) + radius * np.column_stack([np.cos(quarter), np.sin(quarter)])
    turns = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
    return np.concatenate([corner @ np.array(turn, float).reshape(2, 2).T for turn in turns])


def _circle(radius: float) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return radius * np.column_stack([np.cos(t), np.sin(t)])


def _convex_hull(points: np.ndarray) -> list[np.ndarray]:
    """Returns the hull of [k, 2] points in order (Andrew's monotone chain, 1979)."""
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]

    def chain(sequence: np.ndarray) -> list[np.ndarray]:
        kept: list[np.ndarray] = []
        for point in sequence:
            while len(kept) > 1:
                a, b = kept[-1] - kept[-2], point - kept[-1]
                if a[0] * b[1] - a[1] * b[0] > 0:
                    break
                kept.pop()
            kept.append(point)
        return kept[:-1]

    return chain(ordered) + chain(ordered[::-1])


def _draw_card_corner(
    draw: ImageDraw.ImageDraw, rank: str, suit: str, *, w: int, h: int, colour: Rgb
) -> None:
    x = 0.125 * w
    draw.text((x, 0.11 * h), rank, fill=(*colour, 255), font=_font(round(0.135 * h)), anchor="mm")
    draw.polygon(_suit_points(suit, x, 0.225 * h, 0.047 * h), fill=(*colour, 255))


def _draw_card_face(
    draw: ImageDraw.ImageDraw, rank: str, suit: str, *, w: int, h: int, colour: Rgb
) -> None:
    """Draws the pips of a number, the large pip of an ace, or the framed letter of a court card."""
    if rank == "A":
        draw.polygon(_suit_points(suit, w / 2, h / 2, 0.17 * h), fill=(*colour, 255))
        return
    if rank in "JQK":
        frame = (0.24 * w, 0.12 * h, 0.76 * w, 0.88 * h)
        draw.rectangle(
            frame, fill=(250, 224, 148, 255), outline=(40, 70, 140, 255), width=max(2, h // 90)
        )
        for k in range(7):
            y = (0.16 + 0.113 * k) * h
            draw.line(
                (0.26 * w, y, 0.74 * w, y + 0.04 * h),
                fill=(214, 92, 60, 255),
                width=max(2, h // 120),
            )
        draw.ellipse(
            (0.29 * w, 0.5 * h - 0.21 * w, 0.71 * w, 0.5 * h + 0.21 * w), fill=(252, 250, 244, 255)
        )
        draw.text(
            (w / 2, 0.475 * h), rank, fill=(*colour, 255), font=_font(round(0.24 * h)), anchor="mm"
        )
        draw.polygon(_suit_points(suit, w / 2, 0.59 * h, 0.04 * h), fill=(*colour, 255))
        return
    for x, y in _PIP_PLACES[int(rank)]:
        points = _suit_points(suit, x * w, y * h, 0.068 * h, upside_down=y > 0.5)
        draw.polygon(points, fill=(*colour, 255))


_LEFT, _MIDDLE, _RIGHT = 0.33, 0.5, 0.67
_PAIR = tuple((x, y) for x in (_LEFT, _RIGHT) for y in (0.2, 0.8))
_SIDES_3 = tuple((x, y) for x in (_LEFT, _RIGHT) for y in (0.2, 0.5, 0.8))
_SIDES_4 = tuple((x, y) for x in (_LEFT, _RIGHT) for y in (0.2, 0.4, 0.6, 0.8))
_PIP_PLACES: dict[int, tuple[tuple[float, float], ...]] = {
    2: ((_MIDDLE, 0.2), (_MIDDLE, 0.8)),
    3: ((_MIDDLE, 0.2), (_MIDDLE, 0.5), (_MIDDLE, 0.8)),
    4: _PAIR,
    5: (*_PAIR, (_MIDDLE, 0.5)),
    6: _SIDES_3,
    7: (*_SIDES_3, (_MIDDLE, 0.35)),
    8: (*_SIDES_3, (_MIDDLE, 0.35), (_MIDDLE, 0.65)),
    9: (*_SIDES_4, (_MIDDLE, 0.5)),
    10: (*_SIDES_4, (_MIDDLE, 0.3), (_MIDDLE, 0.7)),
}


def _suit_points(
    suit: str, x: float, y: float, half: float, *, upside_down: bool = False
) -> list[tuple[float, float]]:
    """Returns the outline of a suit symbol around (x, y), `half` its half height."""
    points = _suit_outline(suit) * (-1 if upside_down else 1)
    return [(x + half * px, y + half * py) for px, py in points]


@functools.lru_cache(maxsize=64)
def _suit_outline(suit: str) -> np.ndarray:
    """Returns [k, 2] points within about -1..1, y down."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    if suit == "diamond":
        bow = 1 - 0.16 * np.abs(np.sin(2 * t))
        corner = np.abs(np.cos(t)) + np.abs(np.sin(t))
        return np.column_stack([0.76 * np.cos(t), np.sin(t)]) / corner[:, None] * bow[:, None]
    heart = np.column_stack(
        [
            16 * np.sin(t) ** 3 / 17,
            -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16,
        ]
    )
    if suit == "heart":
        return heart
    stem = np.array(
        [(0.08, 0.35), (0.14, 0.7), (0.36, 1.0), (-0.36, 1.0), (-0.14, 0.7), (-0.08, 0.35)]
    )
    if suit == "spade":
        blade = heart * (0.94, -0.82) + (0, -0.16)
        return np.concatenate([blade[:36], stem[::-1], blade[36:]])
    # Three leaves as one outline around the middle, then the stem.
    leaves = []
    for cx, cy, start in ((0.45, 0.22, -1.05), (0.0, -0.5, -3.15), (-0.45, 0.22, -5.25)):
        arc = np.linspace(start + 2.5, start - 1.45, 24)
        leaves.append(np.column_stack([cx + 0.46 * np.cos(arc), cy + 0.46 * np.sin(arc)]))
    return np.concatenate([leaves[0], leaves[1], leaves[2], stem[::-1]])


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
