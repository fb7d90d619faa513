"""The arguments of an exported program, kept without what can be made again. Needs NumPy only.

A detector's weights, their flat copies, momentum and a batch of images are hundreds of megabytes,
nearly all of it noise, zeros and repetitions. Each argument is either stored or described:

    {"fill": value}                      one number everywhere
    {"normal": [seed, mean, deviation]}  drawn by NumPy's PCG64
    {"repeat": times}                    the stored array, again and again along the first axis
    {"join": [indices, row length]}      other arguments, each flattened and padded to whole rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Arrays below this many elements are stored as they are.
_SMALL = 256


def draw_normal(shape: Sequence[int], *, seed: int, mean: float, deviation: float) -> np.ndarray:
    """Draws float32 numbers that are the same everywhere."""
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    return values * np.float32(deviation) + np.float32(mean)


def join_rows(arrays: Sequence[np.ndarray], row: int) -> np.ndarray:
    """Joins arrays as `engine.optim.flat.FlatLayout` does: float32 [rows, row], padded by zeros."""
    flat = [np.pad(array.reshape(-1), (0, -array.size % row)) for array in arrays]
    return np.concatenate(flat).reshape(-1, row)


def describe(value: np.ndarray, *, repeats: int = 1) -> tuple[dict[str, Any], np.ndarray | None]:
    """Returns how an argument is made and what has to be stored of it, if anything.

    Args:
      value: the argument.
      repeats: how often its rows are known to repeat, as those of a synthetic batch.
    """
    if value.size >= _SMALL and (value == value.flat[0]).all():
        return {"fill": value.flat[0].item()}, None
    if repeats > 1 and value.ndim and value.shape[0] % repeats == 0:
        first = value[: value.shape[0] // repeats]
        if (value == np.tile(first, (repeats, *[1] * (value.ndim - 1)))).all():
            return {"repeat": repeats}, first
    return {}, value


def rebuild(listed: Sequence[Mapping[str, Any]], stored: Mapping[str, np.ndarray]) -> list:
    """Makes the arguments of a program.

    Args:
      listed: `arguments` of its program.json: shape, dtype and how each is made, in order.
      stored: index as text -> array.
    """
    made: list[Any] = [None] * len(listed)
    for index, entry in enumerate(listed):
        shape, dtype = entry["shape"], np.dtype(entry["dtype"])
        if "fill" in entry:
            made[index] = np.full(shape, entry["fill"], dtype)
        elif "normal" in entry:
            seed, mean, deviation = entry["normal"]
            made[index] = draw_normal(shape, seed=seed, mean=mean, deviation=deviation)
        elif "join" not in entry:
            array = stored[str(index)]
            times = entry.get("repeat", 1)
            made[index] = np.tile(array, (times, *[1] * (array.ndim - 1))) if times > 1 else array
    for index, entry in enumerate(listed):
        if "join" in entry:
            indices, row = entry["join"]
            made[index] = join_rows([made[i] for i in indices], row)
    return made
