"""What to do when a device runs out of memory, said in terms of the flags of the run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from absl import flags

from engine.optim.precision import policy_name
from engine.ranks import devices
from engine.ranks.guard import as_system_error
from engine.ranks.progress import EVALUATE, HERE

# TensorFlow's and XLA's allocators say it alike.
_ASKED = re.compile(r"allocat\w* ([\d.]+ ?[KMGT]?i?B|\d+ bytes)")


class OutOfMemoryError(MemoryError):
    """A step or an evaluation did not fit into the memory of the device."""


@contextlib.contextmanager
def explained(config: Any) -> Iterator[None]:
    """Turns a device's lack of memory within the block, in a step or an evaluation, into advice.

    Raises:
      OutOfMemoryError: says what was run, where, and which flags make it smaller.
      OSError: a disk was full.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        if (of_file := as_system_error(error)) is not error:
            raise of_file from error
        training = HERE.place()["kind"] != EVALUATE
        raise OutOfMemoryError(advice(config, error.message, training=training)) from error


def advice(config: Any, message: str, *, training: bool) -> str:
    """Returns what ran out of memory, by TensorFlow's message, and which flags to try."""
    asked = _ASKED.search(message)
    peak = devices.peak_memory_bytes()
    batch = config.train.batch_size if training else config.eval.eval_batch_size
    what = "images per rank and step" if training else "images per evaluation step"
    size = "x".join(map(str, config.model.image_size))
    numbers = [f"{config.model.name} at {size}, {batch} {what}, {policy_name(config.runtime)}"]
    if peak:
        numbers.append(f"peak {peak / 2**30:.1f} GiB")
    if asked:
        numbers.append(f"asked for {asked[1]}")
    return (
        f"{devices.device_name()} is out of memory ({', '.join(numbers)}). "
        f"Try {_remedies(config, batch, training=training)}"
    )


def _remedies(config: Any, batch: int, *, training: bool) -> str:
    if not training:
        # A program that only evaluates has the shorter name.
        is_short = "batch_size" in flags.FLAGS and "eval_batch_size" not in flags.FLAGS
        flag = "batch_size" if is_short else "eval_batch_size"
        smaller = [f"--{flag}={batch // 2}"] if batch > 1 else []
        return ", or ".join([*smaller, "a smaller image_size"])
    remedies = []
    parts = next((k for k in range(2, batch + 1) if batch % k == 0), 0)
    if parts:
        accumulation = config.optim.gradient_accumulation * parts
        remedies.append(
            f"--batch_size={batch // parts} --gradient_accumulation={accumulation} (the same "
            f"global batch, rate and schedule)"
        )
    if not config.runtime.remat:
        remedies.append("--remat (recomputes the backbone's blocks)")
    if policy_name(config.runtime) == "float32":
        remedies.append("--precision=mixed_float16" if config.runtime.precision else "--amp")
    return ", ".join([*remedies, "a smaller image_size or model"])
