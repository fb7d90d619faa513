"""A part of a network that is computed again in the backward pass, to save its activations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import tensorflow as tf


def recomputed(
    layer: tf.Module, forward: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor
) -> tf.Tensor:
    """Applies `forward` in training, and again in the backward pass.

    Batch norm sees the same batch twice; its moving statistics move once only.

    Args:
      layer: whose batch norms `forward` uses.
      forward: a function of the inputs, with nothing random in it but by given seeds.
      inputs: what it is applied to.
    """
    is_replay = False

    def apply(features: tf.Tensor) -> tf.Tensor:
        nonlocal is_replay
        context = _held_statistics(layer) if is_replay else contextlib.nullcontext()
        is_replay = True
        with context:
            return forward(features)

    return tf.recompute_grad(apply)(inputs)


@contextlib.contextmanager
def _held_statistics(layer: tf.Module) -> Iterator[None]:
    """Keeps the moving statistics as they are while batch statistics are used."""
    norms = [
        part
        for part in layer.submodules
        if hasattr(part, "momentum") and hasattr(part, "moving_mean")
    ]
    saved = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0
        yield
    finally:
        for norm, momentum in zip(norms, saved):
            norm.momentum = momentum
