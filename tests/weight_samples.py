"""Values of a model's variables, checkpoints of any values, and refusals that change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf


def values_of(model: tf.keras.Model) -> dict[str, np.ndarray]:
    return {v.name.removesuffix(":0"): v.numpy() for v in model.variables}


def random_values(model: tf.keras.Model, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=v.shape).astype(np.float32) for n, v in values_of(model).items()}


def assert_holds(model: tf.keras.Model, expected: Mapping[str, np.ndarray]) -> None:
    for name, value in values_of(model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> str:
    """Writes a checkpoint by names."""
    tf.raw_ops.SaveV2(
        prefix=str(path),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.convert_to_tensor(value) for value in tensors.values()],
    )
    return str(path)


def assert_refused(load: Callable[..., Any], model: tf.keras.Model, path: Any, match: str) -> None:
    """Checks that a file is refused and that the model is as it was."""
    before = values_of(model)
    with pytest.raises(ValueError, match=match):
        load(model, path)
    assert_holds(model, before)
