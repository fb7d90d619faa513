"""Batches: iterating over them, and having them on the accelerator in time.

TensorFlow orders a copy after all work that is queued on the accelerator at that moment, and waits
for the copy. So a batch that is copied by its step, or numbers that are read after the next step
was started, let the accelerator run dry between steps. Here threads of their own ask for both:
for a batch two steps before it is needed, for numbers as soon as their step is queued. Each batch
under way has a thread: a copy asked for after the one before it would wait for a later step.
"""

from __future__ import annotations

import itertools
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import tensorflow as tf

from engine.ranks import devices

_T = TypeVar("_T")

# A Python error raised inside tf.data arrives as text within TensorFlow's.
_SAID = re.compile(r"\b(\w+Error): (.*)")
# A copy waits for the step that is queued when it begins, so it has to begin a step earlier.
_STEPS_AHEAD = 2
# What travels in place of a type that TensorFlow keeps in host memory, from where every step would
# copy it again.
_TRAVELS_AS = {tf.int32: tf.int64, tf.bool: tf.int8}
_CAME_AS = {travelled: dtype for dtype, travelled in _TRAVELS_AS.items()}
# How long the end of a run waits for the calls in hand.
_CLOSING_SECONDS = 5.0


def iterate(dataset: Iterable[Mapping[str, tf.Tensor]]) -> Iterator[Mapping[str, tf.Tensor]]:
    """Yields the batches of a dataset.

    Raises:
      ValueError: the pipeline failed; with what its own code said, without TensorFlow's wrapping.
    """
    batches = iter(dataset)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            said = _SAID.search(error.message)
            reason = said[2] if said else error.message.splitlines()[0]
            raise ValueError(f"the input pipeline failed: {reason}") from error
        yield batch


def image_shape(batch: Mapping[str, tf.Tensor]) -> tuple[int, ...]:
    """Returns the shape of a batch's images, its tensor of most axes, by which steps are compiled.

    Where several have as many axes, the largest is taken.
    """
    shapes = [value.shape for value in batch.values()]
    return tuple(max(shapes, key=lambda shape: (shape.rank, shape.num_elements())))


class Caller:
    """A thread that makes calls in their order. It does not keep the process from ending."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        """Returns what the call will return, or raise."""
        future: Future = Future()
        self._calls.put((future, call))
        return future

    def close(self) -> None:
        """Ends the thread after the calls that it has, but those that are cancelled."""
        self._calls.put(None)

    def join(self, seconds: float) -> None:
        """Waits for the end of the thread."""
        self._thread.join(seconds)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)


def to_accelerator(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the tensors of a batch in the accelerator's memory; as they are without one.

    int32 travels as int64 and bool as int8; `narrowed` undoes it.
    """
    device = devices.accelerator()
    if not device:
        return dict(batch)
    return _copied(dict(batch), device)


@tf.function(autograph=False)
def _copied(batch: dict[str, tf.Tensor], device: str) -> dict[str, tf.Tensor]:
    """Copies tensors at once: one after another, each would wait for a step."""
    with tf.device("cpu:0"):
        wide = {k: tf.cast(v, _TRAVELS_AS.get(v.dtype, v.dtype)) for k, v in batch.items()}
    with tf.device(device):
        return {name: tf.identity(value) for name, value in wide.items()}


def narrowed(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns a batch with int32 for int64 and bool for int8; in the program that takes it."""
    return {k: tf.cast(v, _CAME_AS.get(v.dtype, v.dtype)) for k, v in batch.items()}


def prepared_ahead(
    batches: Iterable[_T], prepare: Callable[[_T], Any], *, ahead: int
) -> Generator[tuple[_T, Any], None, None]:
    """Yields (batch, prepared batch), prepared in a thread some batches before they are taken.

    Args:
      batches: in their order; errors are raised where their batch would be taken.
      prepare: gives a batch's tensors as its program takes them, in the accelerator's memory.
      ahead: batches that are prepared before they are asked for; 0 needs no thread.
    """
    source = iter(batches)
    end = object()

    def finished(batch: Any) -> Any:
        return end if batch is end else (batch, prepare(batch))

    if not ahead:
        while (item := finished(next(source, end))) is not end:
            yield item
        return
    reader, *others = callers = [Caller() for _ in range(ahead + 2)]
    preparing = itertools.cycle(others)

    def submit() -> Future:
        read = reader.submit(lambda: next(source, end))
        return next(preparing).submit(lambda: finished(read.result()))

    waiting = deque(submit() for _ in range(ahead))
    try:
        while True:
            waiting.append(submit())
            if (item := waiting.popleft().result()) is end:
                return
            yield item
    finally:
        for future in waiting:
            future.cancel()
        close(callers)


def close(callers: Sequence[Caller]) -> None:
    """Ends threads, and waits a little for them."""
    for caller in callers:
        caller.close()
    until = time.monotonic() + _CLOSING_SECONDS
    for caller in callers:
        caller.join(max(until - time.monotonic(), 0.0))


def on_accelerator(
    dataset: Iterable[Mapping[str, tf.Tensor]],
    device_batch: Callable[[Mapping[str, tf.Tensor]], Mapping[str, tf.Tensor]],
    *,
    per_step: int = 1,
) -> Generator[tuple[Mapping[str, tf.Tensor], Mapping[str, tf.Tensor]], None, None]:
    """Yields (batch, what of it programs take, in the accelerator's memory).

    Args:
      dataset: of the batches; its errors as of `iterate`.
      device_batch: picks what goes to the accelerator, see `engine.task.Task`.
      per_step: batches that a step takes; those of two steps are copied ahead.
    """
    return prepared_ahead(
        iterate(dataset),
        lambda batch: to_accelerator(device_batch(batch)),
        ahead=_STEPS_AHEAD * per_step if devices.accelerator() else 0,
    )


class NumbersReader:
    """Reads tensors of the accelerator as soon as their step is queued, without holding it up."""

    def __init__(self) -> None:
        self._caller = Caller() if devices.accelerator() else None

    def __call__(self, numbers: tf.Tensor) -> Callable[[], Any]:
        """Returns a function that waits for the numbers and returns them as an array."""
        return self._caller.submit(numbers.numpy).result if self._caller else numbers.numpy

    def close(self) -> None:
        """Ends the reader's thread."""
        if self._caller:
            close([self._caller])
