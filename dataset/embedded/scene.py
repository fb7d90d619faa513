"""Composes one picture of the embedded data set and knows exactly which pixel shows which object.

Objects are laid down from large to small, each with its shadow. A map of owners records whose
colour a pixel shows for the larger part; masks and boxes are read from that map, so they are exact
and hold the visible part only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from dataset.embedded import photos, things
from dataset.embedded.backgrounds import Background, draw_background, fractal_noise

LEAST_VISIBLE = 0.5
"""Share of an object that later ones leave uncovered."""
LEAST_INSIDE = 0.6
"""Share of an object within the picture."""
LEAST_PIXELS = 90
"""Visible pixels of an object, about 10 x 10."""

_COUNTS = (0.04, 0.06, 0.10, 0.15, 0.18, 0.17, 0.14, 0.10, 0.06)
"""Probability of 0, 1, 2 ... objects in a picture."""
_CROWD_SHARE = 0.09
_ATTEMPTS = 14


class Thing(NamedTuple):
    """A class of objects.

    name, category_id: as the annotations call it; ids have gaps, as COCO's do.
    draw: returns a fresh RGBA picture of one.
    sizes: shortest and longest long side, as a share of the square root of the picture's area.
    turn: largest rotation in degrees, in a sky; on a surface it is `turn_on_surface`.
    lies_flat: may be seen at a slant.
    crowds: comes in heaps too.
    """

    name: str
    category_id: int
    draw: Callable[[np.random.Generator], np.ndarray]
    sizes: tuple[float, float]
    turn: float
    turn_on_surface: float
    mirrors: bool
    lies_flat: bool
    crowds: bool


THINGS = (
    Thing("cat", 2, photos.cat, (0.16, 0.64), 30, 24, True, False, False),
    Thing("astronaut", 5, photos.astronaut, (0.18, 0.72), 180, 24, True, False, False),
    Thing("coffee cup", 8, photos.coffee_cup, (0.16, 0.62), 40, 30, True, False, False),
    Thing("coin", 13, photos.coin, (0.075, 0.28), 180, 180, False, True, True),
    Thing("beach ball", 14, things.beach_ball, (0.08, 0.5), 14, 14, False, False, True),
    Thing("die", 21, things.die, (0.08, 0.38), 180, 180, False, False, True),
    Thing("playing card", 22, things.playing_card, (0.13, 0.52), 180, 180, False, True, True),
    Thing("rocket", 40, things.rocket, (0.15, 0.66), 180, 60, True, False, False),
)


class SceneObject(NamedTuple):
    """thing: index into `THINGS`. mask: bool [h, w], visible pixels. is_crowd: a whole heap."""

    thing: int
    mask: np.ndarray
    is_crowd: bool


class Scene(NamedTuple):
    """pixels: uint8 [h, w, 3]. objects: in the order in which they were laid down."""

    pixels: np.ndarray
    objects: list[SceneObject]


class SpriteBox:
    """Keeps a fixed number of pictures of each thing, drawn when first asked for.

    Args:
      seed: the data set's seed.
      split: `train` or `val`; the two never share a drawn picture.
      variants: pictures kept of each thing.
    """

    def __init__(self, seed: int, split: str, *, variants: int):
        self._seed = [seed, 1 if split == "train" else 2]
        self._variants = variants
        self._drawn: dict[tuple[int, int], np.ndarray] = {}

    def pick(self, thing: int, rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 RGBA [h, w, 4], one of the variants of a thing."""
        key = thing, int(rng.integers(self._variants))
        if key not in self._drawn:
            self._drawn[key] = THINGS[thing].draw(np.random.default_rng([*self._seed, *key]))
        return self._drawn[key]


def compose_scene(
    rng: np.random.Generator, sprites: SpriteBox, *, height: int, width: int, split: str
) -> Scene:
    """Returns one picture with its objects; about one in twenty-five is empty."""
    background = draw_background(rng, height=height, width=width, split=split)
    canvas = _Canvas(rng, background)
    count = int(rng.choice(len(_COUNTS), p=_COUNTS))
    scale = float(np.sqrt(height * width))
    if count and rng.random() < _CROWD_SHARE:
        heaps = [index for index, thing in enumerate(THINGS) if thing.crowds]
        canvas.lay_heap(int(rng.choice(heaps)), sprites, scale=scale)
        count = min(count, 4)
    chosen = rng.integers(len(THINGS), size=count)
    sides = [np.exp(rng.uniform(*np.log(THINGS[thing].sizes))) * scale for thing in chosen]
    for place in np.argsort(sides)[::-1]:
        canvas.lay_one(int(chosen[place]), sprites, side=sides[place])
    return canvas.finish()


class _Canvas:
    """A picture in the making: colours, owners of pixels, light."""

    def __init__(self, rng: np.random.Generator, background: Background):
        self._rng = rng
        pixels = Image.fromarray(np.clip(background.pixels, 0, 255).astype(np.uint8))
        blurred = pixels.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 0.8))))
        self._pixels = np.asarray(blurred, np.float32).copy()
        self._has_shadows = background.is_surface
        self._owner = np.full(self._pixels.shape[:2], -1, np.int32)
        self._things: list[tuple[int, bool]] = []
        self._full_areas: list[int] = []
        angle = rng.uniform(0.15, 0.85) * np.pi
        self._shadow_way = np.array([np.sin(angle), np.cos(angle)])
        self._shadow_strength = float(rng.uniform(0.35, 0.6))

    def lay_one(self, thing: int, sprites: SpriteBox, *, side: float) -> None:
        """Finds a place for an object and lays it there; gives up where there is none."""
        for _ in range(_ATTEMPTS):
            sprite = self._posed(thing, sprites, side=side)
            centre = self._free_centre(side)
            if self._fits(sprite, centre):
                self._things.append((thing, False))
                self._lay(sprite, centre, owner=len(self._things) - 1)
                self._note_area()
                return

    def lay_heap(self, thing: int, sprites: SpriteBox, *, scale: float) -> None:
        """Lays many small objects of a kind close together, as one crowd region."""
        rng = self._rng
        height, width = self._owner.shape
        middle = rng.uniform(0.25, 0.75, 2) * (height, width)
        side = rng.uniform(0.07, 0.11) * scale
        spread = side * rng.uniform(1.0, 1.5)
        self._things.append((thing, True))
        for _ in range(int(rng.integers(10, 22))):
            centre = middle + rng.normal(0, spread, 2) * (0.8, 1.2)
            if (centre > 0.5 * side).all() and (
                centre < np.array([height, width]) - 0.5 * side
            ).all():
                sprite = self._posed(thing, sprites, side=side * rng.uniform(0.85, 1.15))
                self._lay(sprite, centre, owner=len(self._things) - 1)
        self._note_area()

    def finish(self) -> Scene:
        """Grades the picture like a photograph and reads the masks."""
        rng = self._rng
        height, width = self._owner.shape
        lens = ImageFilter.GaussianBlur(float(rng.uniform(0.25, 0.55)))
        sharp = Image.fromarray(np.clip(self._pixels + 0.5, 0, 255).astype(np.uint8))
        pixels = np.asarray(sharp.filter(lens), np.float32) / 255.0
        rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        way = self._shadow_way / np.linalg.norm(self._shadow_way)
        light = 1 - rng.uniform(0.02, 0.12) * (rows * way[0] + columns * way[1])
        light = light - rng.uniform(0, 0.12) * (rows**2 + columns**2)
        if self._has_shadows and rng.random() < 0.3:
            light = light + 0.035 * fractal_noise(rng, height, width, cells=(2, 2), octaves=2)
        pixels = pixels * light[..., None] * rng.uniform(0.93, 1.07, 3).astype(np.float32)
        pixels = np.clip(pixels, 0, 1) ** np.float32(rng.uniform(0.8, 1.05))
        noise = rng.normal(0, rng.uniform(0.002, 0.014), pixels.shape).astype(np.float32)
        graded = np.clip(255 * (pixels + noise) + 0.5, 0, 255).astype(np.uint8)
        objects = [
            SceneObject(thing, self._owner == number, is_crowd)
            for number, (thing, is_crowd) in enumerate(self._things)
        ]
        return Scene(graded, [thing for thing in objects if thing.mask.any()])

    def _posed(self, thing: int, sprites: SpriteBox, *, side: float) -> np.ndarray:
        """Returns an object's picture at its size, slant and rotation: float32 RGBA, 0 to 255."""
        rng, kind = self._rng, THINGS[thing]
        image = Image.fromarray(sprites.pick(thing, rng))
        if kind.mirrors and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turn = kind.turn_on_surface if self._has_shadows else kind.turn
        angle = float(rng.uniform(-turn, turn))
        factor = side / max(image.size)
        size = (max(3, round(image.width * factor)), max(3, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.BILINEAR)
        # A clear margin, or rotation would cut the edges without smoothing them.
        image = ImageOps.expand(image, 2)
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        if kind.lies_flat:
            squashed = max(3, round(image.height * rng.uniform(0.62, 1.0)))
            image = image.resize((image.width, squashed), Image.Resampling.BILINEAR)
            image = image.rotate(float(rng.uniform(-40, 40)), Image.Resampling.BICUBIC, expand=True)
        sprite = np.asarray(image, np.float32).copy()
        sprite[..., :3] *= rng.uniform(0.82, 1.1)
        return sprite

    def _free_centre(self, side: float) -> np.ndarray:
        """Returns (y, x): anywhere, a little over the border, or close to what is there."""
        rng = self._rng
        size = np.array(self._owner.shape, np.float64)
        if self._things and rng.random() < 0.28:
            rows, columns = np.nonzero(self._owner >= 0)
            pick = int(rng.integers(len(rows)))
            return np.array([rows[pick], columns[pick]]) + rng.normal(0, 0.45 * side, 2)
        margin = 0.34 * side if rng.random() < 0.7 else 0.1 * side
        return rng.uniform(np.minimum(margin, 0.5 * size), np.maximum(size - margin, 0.5 * size))

    def _fits(self, sprite: np.ndarray, centre: np.ndarray) -> bool:
        """Whether enough of it is inside and enough of the others stays visible."""
        region, part = self._window(sprite, centre)
        if region is None:
            return False
        opaque = part[..., 3] >= 127.5
        area = int(opaque.sum())
        if area < max(LEAST_PIXELS, LEAST_INSIDE * int((sprite[..., 3] >= 127.5).sum())):
            return False
        covered = self._owner[region][opaque]
        losses = np.bincount(covered[covered >= 0], minlength=len(self._things))
        visible = np.bincount(self._owner[self._owner >= 0], minlength=len(self._things))
        left = visible - losses
        needed = np.maximum(LEAST_VISIBLE * np.array(self._full_areas), LEAST_PIXELS)
        return bool((left >= np.minimum(needed, visible)).all())

    def _lay(self, sprite: np.ndarray, centre: np.ndarray, *, owner: int) -> None:
        if self._has_shadows:
            self._lay_shadow(sprite, centre)
        region, part = self._window(sprite, centre)
        if region is None:
            return
        alpha = part[..., 3:] / 255.0
        pixels = self._pixels[region]
        pixels += (np.clip(part[..., :3], 0, 255) - pixels) * alpha
        self._owner[region][part[..., 3] >= 127.5] = owner

    def _lay_shadow(self, sprite: np.ndarray, centre: np.ndarray) -> None:
        side = float(np.sqrt(sprite.shape[0] * sprite.shape[1]))
        blur = 0.035 * side + 0.8
        margin = int(np.ceil(3 * blur))
        shape = Image.fromarray(np.pad(sprite[..., 3], margin).astype(np.uint8))
        soft = np.asarray(shape.filter(ImageFilter.GaussianBlur(blur)), np.float32)[..., None]
        region, part = self._window(soft, centre + self._shadow_way * (0.05 * side + 1))
        if region is not None:
            self._pixels[region] *= 1 - self._shadow_strength * part / 255.0

    def _window(
        self, sprite: np.ndarray, centre: np.ndarray
    ) -> tuple[tuple[slice, slice] | None, np.ndarray]:
        """Returns the part of the picture under a sprite, and the part of the sprite over it."""
        height, width = self._owner.shape
        top = round(float(centre[0]) - sprite.shape[0] / 2)
        left = round(float(centre[1]) - sprite.shape[1] / 2)
        y1, x1 = max(top, 0), max(left, 0)
        y2, x2 = min(top + sprite.shape[0], height), min(left + sprite.shape[1], width)
        if y1 >= y2 or x1 >= x2:
            return None, sprite[:0, :0]
        return (slice(y1, y2), slice(x1, x2)), sprite[y1 - top : y2 - top, x1 - left : x2 - left]

    def _note_area(self) -> None:
        self._full_areas.append(int((self._owner == len(self._things) - 1).sum()))
