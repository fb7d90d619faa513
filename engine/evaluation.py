"""The evaluation loop: every image once over all ranks, rows gathered as one array, scored on rank 0."""

import time
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from engine import distributed
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
        self._checked = False

    def __call__(self) -> tuple[dict[str, float], np.ndarray | None]:
        """Returns (metrics on every rank, all detection rows on rank 0)."""
        start = time.monotonic()
        self._check_once()
        rows, seen = [], []
        last_said = start
        for batch in self._task.eval_dataset(shard=Shard(distributed.rank(), distributed.size())):
            detections = self._predict(self._task.device_batch(batch))
            new_rows, new_images = self._task.detection_rows(batch, detections)
            rows.append(new_rows)
            seen.append(new_images)
            if time.monotonic() - last_said > _PROGRESS_SECONDS:
                last_said = time.monotonic()
                self._say_progress(sum(map(len, seen)), last_said - start)
        joined = distributed.gather_rows(np.concatenate([np.zeros([0, 7]), *rows]))
        images = distributed.gather_rows(np.concatenate([np.zeros([0], np.int64), *seen]))
        metrics: dict[str, float] = {}
        if distributed.is_main():
            metrics = self._task.score(joined, images)
        metrics = distributed.broadcast_object(metrics)
        self._log.info(f"evaluation took {format_duration(time.monotonic() - start)}")
        return metrics, joined

    def _say_progress(self, done: int, seconds: float) -> None:
        total = -(-self._task.num_eval_examples // distributed.size())
        eta = format_duration((total - done) * seconds / max(done, 1))
        self._log.info(
            f"evaluating: {done} of {total} images of this rank, {done / seconds:.1f} images/s, ETA {eta}"
        )

    def _check_once(self) -> None:
        if self._checked:
            return
        problem = ""
        if distributed.is_main():
            try:
                self._task.check_ground_truth()
            except ValueError as error:
                problem = str(error)
        problem = distributed.broadcast_object(problem)
        if problem:
            raise ValueError(problem)
        self._checked = True


def percent(metrics: Mapping[str, float], name: str) -> float:
    """Returns a metric in percent, rounded to two decimals."""
    return round(100.0 * metrics[name], 2)
