"""Drawn objects of the embedded set: beach ball, rocket, die, playing card.

Each function returns one uint8 RGBA picture of its object, varied by the random generator. Objects
are drawn at `OVERSAMPLE` times their size and reduced, so that edges are smooth, and lit from the
upper left.
"""

from __future__ import annotations

import functools

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

Rgb = tuple[int, int, int]

OVERSAMPLE = 2
LIGHT = np.array([-0.46, -0.58, 0.67])
"""Direction to the light: x to the right, y down, z to the viewer."""

_BRIGHT: tuple[Rgb, ...] = (
    *((226, 52, 48), (250, 190, 36), (38, 132, 214), (36, 164, 92)),
    *((240, 118, 32), (134, 74, 190), (232, 86, 148), (22, 170, 178)),
)


def _lit(colour: Rgb, light: float) -> Rgb:
    """Scales a colour, and lets it fade to white beyond full light."""
    values = np.array(colour) * min(light, 1.0) + 255 * max(0.0, light - 1.0)
    r, g, b = np.clip(values.round(), 0, 255).astype(int).tolist()
    return r, g, b


def _finished(picture: np.ndarray | Image.Image) -> np.ndarray:
    """Returns an oversampled RGBA picture at its final size, without its transparent margin."""
    image = Image.fromarray(np.asarray(picture).astype(np.uint8))
    image = image.crop(image.getchannel("A").getbbox())
    size = (-(-image.width // OVERSAMPLE), -(-image.height // OVERSAMPLE))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    return Rotation.from_quat(rng.normal(size=4)).as_matrix()


def beach_ball(rng: np.random.Generator) -> np.ndarray:
    """Returns a ball of six panels, turned at random."""
    n = 184 * OVERSAMPLE
    y, x = np.mgrid[-1 + 1 / n : 1 : 2 / n, -1 + 1 / n : 1 : 2 / n].astype(np.float32)
    normals = np.dstack([x, y, np.sqrt(1 - np.minimum(x * x + y * y, 1))])
    turned = normals @ _random_rotation(rng)
    longitude = (np.arctan2(turned[..., 1], turned[..., 0]) / (2 * np.pi) + 1) % 1 * 6
    first, second, third = (_BRIGHT[k] for k in rng.permutation(len(_BRIGHT))[:3])
    white = (246, 246, 240)
    with_white = [first, white, second, white, third, white]
    panels = with_white if rng.random() < 0.6 else [first, second, third] * 2
    colour = np.array(panels, np.float32)[longitude.astype(int) % 6]
    seam = np.abs(longitude - np.round(longitude)) * np.hypot(turned[..., 0], turned[..., 1])
    colour *= np.clip(0.72 + seam * 12, 0.72, 1)[..., None]
    colour[np.abs(turned[..., 2]) > 0.965] = white
    facing = normals @ LIGHT
    # The light mirrored at the surface, its part towards the viewer (Phong, 1975).
    gloss = np.clip(2 * facing * normals[..., 2] - LIGHT[2], 0, 1) ** 36
    colour = colour * (0.36 + 0.72 * np.clip(facing, 0, 1))[..., None] + 150 * gloss[..., None]
    alpha = np.clip((1 - np.hypot(x, y)) * n / 2 + 0.5, 0, 1)
    return _finished(np.dstack([np.clip(colour, 0, 255), 255 * alpha]))


def rocket(rng: np.random.Generator) -> np.ndarray:
    """Returns a rocket pointing up, with or without its flame."""
    h = 264 * OVERSAMPLE
    w = round(h * 0.52)
    accent, second = (_BRIGHT[k] for k in rng.permutation(len(_BRIGHT))[:2])
    body = ((244, 243, 238), (206, 212, 220), (250, 226, 190))[int(rng.integers(3))]
    has_flame = bool(rng.random() < 0.65)
    length = h * (0.76 if has_flame else 0.97)  # of the hull, pixels
    image = Image.new("RGBA", (w, h))
    draw = ImageDraw.Draw(image)

    def shape(points: np.ndarray | list[tuple[float, float]], colour: Rgb) -> None:
        """Draws a polygon of (x, y): shares of the hull's length, from its axis and its nose."""
        placed = np.array(points) * length + (w / 2, 0)
        draw.polygon([tuple(point) for point in placed], fill=(*colour, 255))

    if has_flame:
        t = np.linspace(0, 1, 24)
        for width, reach, colour in (
            (0.105, 0.98, (246, 110, 30)),
            (0.078, 0.76, (255, 176, 40)),
            (0.046, 0.5, (255, 244, 190)),
        ):
            half = width * (1 - t**1.7) * (1 + 0.28 * np.sin(np.pi * t))
            sway, y = rng.normal(0, 0.008) * t, 0.97 + 0.345 * reach * t
            left, right = np.column_stack([sway - half, y]), np.column_stack([sway + half, y])
            shape(np.concatenate([left, right[::-1]]), colour)
    reach = rng.uniform(0.24, 0.31)
    for side, light in ((-1, 1.0), (1, 0.62)):
        fin = [(0.09, 0.66), (0.2, 0.74), (reach, 0.98), (reach - 0.02, 1.0), (0.1, 0.9)]
        shape([(side * x, y) for x, y in fin], _lit(accent, light))
    shape([(-0.075, 0.9), (0.075, 0.9), (0.1, 0.985), (-0.1, 0.985)], (58, 60, 66))
    bands = int(rng.integers(3))
    hull = _rocket_hull(w, h, length, body=body, accent=accent, second=second, bands=bands)
    image.alpha_composite(Image.fromarray(hull))
    draw = ImageDraw.Draw(image)
    circle = np.array([(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 48)])
    for k in range(int(rng.integers(1, 3))):
        centre, radius = (0, 0.36 + 0.17 * k), 0.062 - 0.014 * k
        shape(centre + radius * circle, (120, 124, 132))
        shape(centre + 0.82 * radius * circle, (226, 228, 232))
        shape(centre + 0.66 * radius * circle, (40, 96, 150))
        shape(centre + radius * (circle * 0.27 - (0.08, 0.17)), (150, 206, 240))
    shape([(-0.014, 0.7), (0.014, 0.7), (0.02, 0.985), (-0.02, 0.985)], _lit(accent, 0.85))
    return _finished(image)


def _rocket_hull(
    w: int, h: int, length: float, *, body: Rgb, accent: Rgb, second: Rgb, bands: int
) -> np.ndarray:
    """Returns uint8 RGBA [h, w]: nose, body and bands, shaded as a round hull."""
    x, t = (np.arange(w) + 0.5 - w / 2) / length, (np.arange(h) + 0.5) / length
    nose = 0.135 * np.clip(t / 0.42, 0, 1) ** 0.62
    tail = 0.135 - 0.055 * np.clip((t - 0.42) / 0.5, 0, 1) ** 1.6
    half = np.where((t > 0.008) & (t < 0.925), np.where(t < 0.42, nose, tail), 0.0)[:, None]
    across = np.clip(x / np.maximum(half, 1e-6), -1, 1)
    alpha = np.clip((half - np.abs(x)) * length + 0.5, 0, 1) * (half > 0)
    light = np.clip(across * LIGHT[0] + np.sqrt(1 - across**2) * LIGHT[2], 0, 1)
    shade = 0.38 + 0.8 * light + 0.35 * np.exp(-(((across + 0.45) / 0.16) ** 2))
    colour = np.full((h, w, 3), body, np.float64)
    colour[(t < 0.24) | (t > 0.86)] = accent
    for k in range(bands):
        colour[(t > 0.66 + 0.07 * k) & (t < 0.695 + 0.07 * k)] = second
    colour[(t > 0.24) & (t < 0.247)] = (120, 122, 126)
    pixels = np.clip(colour * shade[..., None], 0, 255)
    return np.dstack([pixels, 255 * alpha]).astype(np.uint8)


_SPOTS = {"1": (4,), "2": (0, 8), "3": (0, 4, 8), "4": (0, 2, 6, 8), "5": (0, 2, 4, 6, 8)}
_SPOTS["6"] = (0, 1, 2, 6, 7, 8)
"""Places of a die's spots on a grid of three by three; opposite faces have seven together."""


def die(rng: np.random.Generator) -> np.ndarray:
    """Returns a die with one to three of its faces in view."""
    n = 176 * OVERSAMPLE
    bodies: tuple[Rgb, ...] = (
        *((250, 247, 238), (250, 247, 238), (198, 30, 40), (32, 84, 170)),
        *((34, 120, 72), (40, 40, 46), (236, 176, 34)),
    )
    base = bodies[int(rng.integers(len(bodies)))]
    spot = (28, 28, 32) if sum(base) > 420 else (250, 248, 240)
    rotation = _random_rotation(rng)
    # Row k is where axis k points; seen straight onto a face, a die is only a square.
    while np.abs(rotation[:, 2]).max() > 0.94:
        rotation = _random_rotation(rng)
    image = Image.new("RGBA", (n, n))
    draw = ImageDraw.Draw(image)

    def on_screen(points: np.ndarray, face: int) -> np.ndarray:
        """Projects [k, 2] points of a face of the cube, half edge 1; the camera is six away."""
        lifted = np.insert(points, face // 2, 1.0 - 2 * (face % 2), axis=1) @ rotation
        return n / 2 + 0.29 * n * lifted[:, :2] * (6.0 / (6.0 - lifted[:, 2:]))

    def paint(points: np.ndarray, colour: Rgb) -> None:
        draw.polygon([tuple(point) for point in points], fill=(*colour, 255))

    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    circle = np.column_stack([np.cos(t), np.sin(t)])
    # A square with rounded corners.
    square = 0.65 * np.sign(circle.round(9)) + 0.29 * circle
    outline = np.concatenate([on_screen(square * 1.03, face) for face in range(6)])
    paint(outline[ConvexHull(outline).vertices], _lit(base, 0.92))
    for face, value in enumerate("162534"):
        normal = np.insert(np.zeros(2), face // 2, 1.0 - 2 * (face % 2)) @ rotation
        # With perspective a face shows when it looks at the camera's place, not its direction.
        if normal @ (np.array([0, 0, 6.0]) - normal) <= 0.02:
            continue
        light = 0.5 + 0.58 * max(0.0, float(normal @ LIGHT))
        paint(on_screen(square, face), _lit(base, light))
        for place in _SPOTS[value]:
            centre = 0.52 * (np.array(divmod(place, 3)) - 1)
            paint(on_screen(centre + 0.185 * circle, face), _lit(spot, 0.55 + 0.45 * light))
            paint(on_screen(centre + 0.12 * circle + 0.03, face), _lit(spot, 0.8 + 0.45 * light))
    return _finished(image)


_COLUMN = tuple((0.5, y) for y in (0.2, 0.35, 0.5, 0.65, 0.8))
_SIDES = {
    rows: tuple((x, y) for x in (0.33, 0.67) for y in np.linspace(0.2, 0.8, rows))
    for rows in (2, 3, 4)
}
_PIPS = {
    "A": (),
    "2": (_COLUMN[0], _COLUMN[4]),
    "3": _COLUMN[::2],
    "4": _SIDES[2],
    "5": (*_SIDES[2], _COLUMN[2]),
    "6": _SIDES[3],
    "7": (*_SIDES[3], _COLUMN[1]),
    "8": (*_SIDES[3], _COLUMN[1], _COLUMN[3]),
    "9": (*_SIDES[4], _COLUMN[2]),
    "10": (*_SIDES[4], (0.5, 0.3), (0.5, 0.7)),
    **dict.fromkeys("JQK", ()),
}
"""Where the suit stands on a card, shares of its width and height."""


def playing_card(rng: np.random.Generator) -> np.ndarray:
    """Returns a card of the 52, upright."""
    rank, suit = list(_PIPS)[int(rng.integers(13))], "♥♦♠♣"[int(rng.integers(4))]
    colour = (200, 24, 36, 255) if suit in "♥♦" else (22, 24, 28, 255)
    h = 232 * OVERSAMPLE
    w = round(h * 0.70)
    image = Image.new("RGBA", (w, h))
    draw = ImageDraw.Draw(image)
    box, inset = (0, 0, w - 1, h - 1), 0.008 * h
    draw.rounded_rectangle(box, 0.07 * h, fill=(176, 172, 164))
    draw.rounded_rectangle(
        (inset, inset, w - 1 - inset, h - 1 - inset), 0.065 * h, fill=(252, 251, 246)
    )

    def write(text: str, x: float, y: float, size: float) -> None:
        """Writes a suit around (x, y), a rank above it; shares of width and height."""
        anchor = "mm" if text == suit else "ms"
        draw.text((x * w, y * h), text, fill=colour, font=_font(round(size * h)), anchor=anchor)

    for x, y in _PIPS[rank]:
        write(suit, x, y, 0.19)
    if rank == "A":
        write(suit, 0.5, 0.5, 0.46)
    elif rank in "JQK":
        frame = (0.24 * w, 0.12 * h, 0.76 * w, 0.88 * h)
        draw.rectangle(frame, fill=(250, 224, 148), outline=(40, 70, 140), width=h // 90)
        for y in np.arange(0.16, 0.9, 0.113) * h:
            stroke = (0.26 * w, y, 0.74 * w, y + 0.04 * h)
            draw.line(stroke, fill=(214, 92, 60), width=h // 120)
        medal = (0.29 * w, 0.5 * h - 0.21 * w, 0.71 * w, 0.5 * h + 0.21 * w)
        draw.ellipse(medal, fill=(252, 250, 244))
        write(rank, 0.5, 0.53, 0.22)
        write(suit, 0.5, 0.61, 0.11)
    write(rank, 0.125, 0.15, 0.13)
    write(suit, 0.125, 0.23, 0.12)
    # The lower half is the upper one upside down, but for what only one half has.
    turned = image.rotate(180)
    corner = (round(0.76 * w), round(0.72 * h))
    if rank in ("2", "3", "4", "5", "6", "8", "9", "10"):
        corner = (0, h // 2 + round(0.09 * h))
    image.paste(turned.crop((*corner, w, h)), corner)
    return _finished(image)


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which has the suits of cards."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans:bold"), size)
