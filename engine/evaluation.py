"""The evaluation loop: every image once over all ranks, rows gathered, scored on rank 0."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from engine import distributed
from engine.batches import iterate
from engine.metrics import format_duration
from engine.run_log import RunLog
from engine.task import Shard, Task

_PROGRESS_SECONDS = 10


class Evaluator:
    """Evaluates a task again and again with one compiled prediction.

    Args:
      task: the model family.
      log: where progress goes.
      use_xla: compile the prediction.
    """

    def __init__(self, task: Task, log: RunLog, *, use_xla: bool):
        self._task, self._log = task, log
        self._predict = tf.function(task.predict, autograph=False, jit_compile=use_xla or None)

    def __call__(self) -> tuple[dict[str, float], np.ndarray | None]:
        """Returns (metrics on every rank, all detection rows on rank 0)."""
        start = last_said = time.monotonic()
        rows, images = [np.zeros([0, 7])], [np.zeros([0], np.int64)]
        shard = Shard(distributed.rank(), distributed.size())
        for batch in iterate(self._task.eval_dataset(shard=shard)):
            detections = self._predict(self._task.device_batch(batch))
            new_rows, new_images = self._task.detection_rows(batch, detections)
            rows.append(new_rows)
            images.append(new_images)
            if time.monotonic() - last_said > _PROGRESS_SECONDS:
                last_said = time.monotonic()
                self._say_progress(sum(map(len, images)), last_said - start)
        all_rows = distributed.gather_rows(np.concatenate(rows))
        all_images = distributed.gather_rows(np.concatenate(images))
        metrics = distributed.on_main(lambda: self._task.score(all_rows, all_images))
        self._log.info(f"evaluation took {format_duration(time.monotonic() - start)}")
        return metrics, all_rows

    def _say_progress(self, done: int, seconds: float) -> None:
        total = -(-self._task.num_eval_examples // distributed.size())
        eta = format_duration((total - done) * seconds / max(done, 1))
        self._log.info(
            f"evaluating: {done} of {total} images of this rank, {done / seconds:.1f} images/s, "
            f"ETA {eta}"
        )


class Validator:
    """Computes the losses of a task on its validation set.

    Args:
      task: the model family.
      use_xla: compile the forward pass.
    """

    def __init__(self, task: Task, *, use_xla: bool):
        self._task = task
        self._losses = tf.function(self._weighted, autograph=False, jit_compile=use_xla or None)

    def _weighted(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        result = self._task.losses(batch, training=False)
        parts = [result.parts[name] for name in self._task.loss_names]
        values = tf.stack([tf.cast(v, tf.float32) for v in (result.loss, *parts)])
        return tf.concat([values, [1.0]], axis=0) * tf.cast(result.weight, tf.float32)

    def __call__(self) -> dict[str, float]:
        """Returns `val_loss` and `val_<part>`, weighted over batches and ranks as in training."""
        names = ("val_loss", *(f"val_{name}" for name in self._task.loss_names))
        sums = np.zeros(len(names) + 1)
        shard = Shard(distributed.rank(), distributed.size())
        for batch in iterate(self._task.eval_dataset(shard=shard)):
            sums += self._losses(self._task.device_batch(batch)).numpy()
        total = distributed.reduce_sum([tf.constant(sums)])[0].numpy()
        return dict(zip(names, (total[:-1] / total[-1]).tolist()))


def percent(metrics: Mapping[str, float], name: str) -> float:
    """Returns a metric in percent, rounded to two decimals."""
    return round(100.0 * metrics[name], 2)
