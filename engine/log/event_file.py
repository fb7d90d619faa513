"""Writing what TensorBoard reads: a record file of Event messages.

`tf.summary` runs an operation for every number, which takes most of a millisecond of the thread
that starts the training steps, and keeps some kilobytes of each step for ever. Here a step is one
message.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

_FLUSH_SECONDS = 30.0


class EventFile:
    """An event file in a folder; a new one each time, as TensorBoard reads all of them.

    Args:
      folder: made if need be.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.v2"
        self._writer = tf.io.TFRecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        self.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers by tag."""
        tensors = {tag: tf.make_tensor_proto(value, tf.float32) for tag, value in values.items()}
        self._write_tensors(step, tensors, plugin="scalars")

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Writes picture files (JPEG, PNG) by tag."""
        tensors = {}
        for tag, path in pictures.items():
            encoded = path.read_bytes()
            height, width = tf.io.decode_image(encoded).shape[:2]
            parts = [str(width).encode(), str(height).encode(), encoded]
            tensors[tag] = tf.make_tensor_proto(parts, tf.string)
        self._write_tensors(step, tensors, plugin="images")

    def flush(self) -> None:
        """Puts everything on disk."""
        self._writer.flush()
        self._flushed_at = time.monotonic()

    def _write_tensors(self, step: int, tensors: Mapping[str, Any], *, plugin: str) -> None:
        message = tf.compat.v1.Summary()
        for tag, tensor in tensors.items():
            value = message.value.add(tag=tag, tensor=tensor)
            value.metadata.plugin_data.plugin_name = plugin
        self._write(step=step, summary=message)
        if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self.flush()

    def _write(self, **fields: Any) -> None:
        event = tf.compat.v1.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())
