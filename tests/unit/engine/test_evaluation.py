"""The evaluation loop: rows and masks of all batches, in their order, made beside prediction."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from engine.evaluation import Evaluator, gather_bytes
from engine.task import MaskedRows


class Log(list):
    def info(self, line):
        self.append(line)


class CountingTask:
    """Batches of numbers; a batch of n has n rows and, if asked for, a mask of n bytes each."""

    num_eval_examples = 6

    def __init__(self, sizes=(2, 0, 3, 1), *, has_masks=False, fails_at=None):
        self._sizes, self._fails_at = sizes, fails_at
        self.has_masks = has_masks
        self.threads = set()

    def eval_dataset(self, *, shard):
        assert shard == (0, 1)
        return [{"n": tf.constant(n), "at": tf.constant(i)} for i, n in enumerate(self._sizes)]

    def device_batch(self, batch):
        return batch

    def predict(self, batch):
        return batch["n"] + 0

    def detection_rows(self, batch, detections):
        self.threads.add(threading.current_thread())
        n, at = int(detections), int(batch["at"])
        if at == self._fails_at:
            raise ValueError("these rows cannot be made")
        rows = np.full([n, 7], float(at))
        if self.has_masks:
            rows = MaskedRows(rows, [bytes([at]) * n] * n)
        return rows, np.full([n], at)

    def score(self, rows, images):
        self.scored = rows, images
        return {"AP": 0.5}


def test_rows_come_in_the_order_of_the_batches():
    task = CountingTask()
    metrics, rows = Evaluator(task, Log(), use_xla=False)()
    assert metrics == {"AP": 0.5}
    assert rows[:, 0].tolist() == task.scored[1].tolist() == [0, 0, 2, 2, 2, 3]
    assert threading.main_thread() not in task.threads


def test_masks_stay_with_their_rows():
    task = CountingTask(has_masks=True)
    _, found = Evaluator(task, Log(), use_xla=False)()
    assert found is task.scored[0]
    assert found.rows[:, 0].tolist() == [0, 0, 2, 2, 2, 3]
    assert found.masks == [b"\0\0", b"\0\0", b"\2\2\2", b"\2\2\2", b"\2\2\2", b"\3"]


@pytest.mark.parametrize("has_masks", [False, True])
def test_no_batch_gives_no_row(has_masks):
    task = CountingTask((), has_masks=has_masks)
    _, found = Evaluator(task, Log(), use_xla=False)()
    rows = found.rows if has_masks else found
    assert rows.shape == (0, 7) and task.scored[1].shape == (0,)


def test_a_failure_while_rows_are_made_ends_the_evaluation():
    task = CountingTask(fails_at=1)
    with pytest.raises(ValueError, match="cannot be made"):
        Evaluator(task, Log(), use_xla=False)()


def test_byte_strings_survive_gathering():
    values = [b"", b"a b", b"\0\xff", b""]
    assert gather_bytes(values) == values
    assert gather_bytes([]) == []


def test_each_shape_of_batches_is_said_to_be_compiled_once():
    class TwoShapes(CountingTask):
        def eval_dataset(self, *, shard):
            return [{**batch, "image": tf.zeros([1, 2 + i % 2, 3, 3])}
                    for i, batch in enumerate(super().eval_dataset(shard=shard))]  # fmt: skip

    log = Log()
    evaluate = Evaluator(TwoShapes(), log, use_xla=True)
    for _ in range(2):
        evaluate()
    said = [line for line in log if "compiling" in line]
    assert said == [f"compiling the prediction for batches of (1, {h}, 3, 3)" for h in (2, 3)]
