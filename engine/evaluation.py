"""The evaluation loop: every image once over all ranks, rows gathered, scored on rank 0."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from engine.batches import image_shape, narrowed, on_accelerator
from engine.log.meanwhile import said_meanwhile
from engine.log.meters import format_duration
from engine.log.run_log import RunLog
from engine.ranks import distributed
from engine.ranks.progress import EVALUATE, HERE
from engine.task import MaskedRows, Shard, Task

_PROGRESS_SECONDS = 10
# Batches whose detections may wait to be turned into rows.
_MOST_WAITING = 2


class _Program:
    """A function of batches; the log says for which shapes of them it is compiled."""

    def __init__(self, name: str, function: Callable[[Any], Any], log: RunLog, *, use_xla: bool):
        self._name, self._log, self._use_xla = name, log, use_xla
        self.compiled = tf.function(
            lambda batch: function(narrowed(batch)), autograph=False, jit_compile=use_xla or None
        )
        self._shapes: set[tuple[int, ...]] = set()

    def __call__(self, batch: Mapping[str, tf.Tensor]) -> Any:
        shape = image_shape(batch)
        if not self._use_xla or shape in self._shapes:
            return self.compiled(batch)
        self._shapes.add(shape)
        self._log.info(f"compiling {self._name} for batches of {shape}")
        with said_meanwhile(self._log.info, f"compiling {self._name}"):
            return self.compiled(batch)


class Evaluator:
    """Evaluates a task again and again with one compiled prediction; progress goes to the log."""

    def __init__(self, task: Task, log: RunLog, *, use_xla: bool):
        self._task, self._log = task, log
        self._predict = _Program("the prediction", task.predict, log, use_xla=use_xla)

    def __call__(self) -> tuple[dict[str, float], Any]:
        """Returns (metrics on every rank, all detection rows on rank 0)."""
        HERE.at("evaluating", EVALUATE)
        start = last_said = time.monotonic()
        found: list[tuple[Any, np.ndarray]] = []
        waiting: list[Future] = []
        shard = Shard(distributed.rank(), distributed.size())
        # One thread makes rows (and pastes masks) while the next batch is predicted.
        with ThreadPoolExecutor(max_workers=1) as pool:
            dataset = self._task.eval_dataset(shard=shard)
            for batch, on_device in on_accelerator(dataset, self._task.device_batch):
                HERE.tick()
                detections = self._predict(on_device)
                waiting.append(pool.submit(self._task.detection_rows, batch, detections))
                if len(waiting) > _MOST_WAITING:
                    found.append(waiting.pop(0).result())
                if time.monotonic() - last_said > _PROGRESS_SECONDS:
                    last_said = time.monotonic()
                    self._say_progress(sum(len(i) for _, i in found), last_said - start)
            found += [future.result() for future in waiting]
        self._task.evaluation_seconds = time.monotonic() - start
        HERE.at("gathering and scoring detections", EVALUATE)
        rows = self._gather([rows for rows, _ in found])
        images = distributed.gather_rows(
            np.concatenate([np.zeros([0], np.int64), *(i for _, i in found)])
        )
        metrics = distributed.on_main(lambda: self._task.score(rows, images))
        self._log.info(f"evaluation took {format_duration(time.monotonic() - start)}")
        return metrics, rows

    def _gather(self, found: Sequence[Any]) -> Any:
        """Joins the rows of this rank's batches and of all ranks; on rank 0."""
        if not self._task.has_masks:
            return distributed.gather_rows(np.concatenate([np.zeros([0, 7]), *found]))
        rows = distributed.gather_rows(np.concatenate([np.zeros([0, 7]), *(f.rows for f in found)]))
        masks = gather_bytes([mask for f in found for mask in f.masks])
        return MaskedRows(rows, masks)

    def _say_progress(self, done: int, seconds: float) -> None:
        total = -(-self._task.num_eval_examples // distributed.size())
        speed = "the first batch takes longest"
        if done:
            eta = format_duration((total - done) * seconds / done)
            speed = f"{done / seconds:.1f} images/s, ETA {eta}"
        self._log.info(f"evaluating: {done} of {total} images of this rank, {speed}")


def gather_bytes(values: Sequence[bytes]) -> list[bytes]:
    """Joins every rank's byte strings on rank 0, in rank order; [] on the other ranks."""
    lengths = distributed.gather_rows(np.array([len(value) for value in values], np.int64))
    joined = distributed.gather_rows(np.frombuffer(b"".join(values), np.uint8))
    if lengths is None or joined is None:
        return []
    text, ends = joined.tobytes(), np.cumsum(lengths)
    return [text[end - length : end] for length, end in zip(lengths, ends)]


class Validator:
    """Computes the losses of a task on its validation set."""

    def __init__(self, task: Task, log: RunLog, *, use_xla: bool):
        self._task = task
        self._losses = _Program("the validation losses", self._weighted, log, use_xla=use_xla)

    def _weighted(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        result = self._task.losses(batch, training=False)
        parts = [result.parts[name] for name in self._task.loss_names]
        values = tf.stack([tf.cast(v, tf.float32) for v in (result.loss, *parts)])
        return tf.concat([values, [1.0]], axis=0) * tf.cast(result.weight, tf.float32)

    def __call__(self) -> dict[str, float]:
        """Returns `val_loss` and `val_<part>`, weighted over batches and ranks as in training."""
        HERE.at("computing validation losses", EVALUATE)
        names = ("val_loss", *(f"val_{name}" for name in self._task.loss_names))
        sums = np.zeros(len(names) + 1)
        shard = Shard(distributed.rank(), distributed.size())
        dataset = self._task.eval_dataset(shard=shard)
        for _, on_device in on_accelerator(dataset, self._task.device_batch):
            HERE.tick()
            sums += self._losses(on_device).numpy()
        total = distributed.reduce_sum([tf.constant(sums)])[0].numpy()
        return dict(zip(names, (total[:-1] / total[-1]).tolist()))


def percent(metrics: Mapping[str, float], name: str) -> float:
    """Returns a metric in percent, rounded to two decimals."""
    return round(100.0 * metrics[name], 2)
