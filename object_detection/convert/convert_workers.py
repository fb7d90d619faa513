"""Runs the shards of a conversion, here or in spawned worker processes.

Spawned, never forked: a parent that has started TensorFlow cannot be forked safely. Workers obey
the parent's wish to stop between two images, ignore Ctrl-C (the parent handles it), and leave if
the parent is killed.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import Any

from object_detection.convert.convert_shard import (
    ConversionSettings,
    ShardTask,
    check_bad_images,
    convert_shard,
)
from object_detection.records.card_builder import Tally

_POLL_SECONDS = 0.5

Progress = Callable[[int, int], None]
"""Called with (images done, images in all), about twice a second and at the end."""


def run_shards(
    tasks: Sequence[ShardTask],
    settings: ConversionSettings,
    *,
    num_workers: int,
    progress: Progress,
) -> list[Tally]:
    """Converts all shards and returns their tallies in the same order.

    Raises:
      ValueError: as `convert_shard`; or more bad images in all than the settings allow.
      RuntimeError: a worker died.
    """
    num_images = sum(len(task.images) for task in tasks)
    if num_workers > 1:
        tallies = _run_in_workers(tasks, settings, num_workers, num_images, progress)
    else:
        tallies = _run_here(tasks, settings, num_images, progress)
    progress(num_images, num_images)
    return tallies


def _run_here(
    tasks: Sequence[ShardTask], settings: ConversionSettings, num_images: int, progress: Progress
) -> list[Tally]:
    tallies, skipped = [], Tally()
    done, last_report = 0, time.monotonic()

    def on_image() -> None:
        nonlocal done, last_report
        done += 1
        if time.monotonic() - last_report > _POLL_SECONDS:
            last_report = time.monotonic()
            progress(done, num_images)

    for task in tasks:
        tallies.append(convert_shard(task, settings, on_image=on_image))
        skipped.merge(tallies[-1])
        check_bad_images(skipped, settings)
    return tallies


def _run_in_workers(
    tasks: Sequence[ShardTask],
    settings: ConversionSettings,
    num_workers: int,
    num_images: int,
    progress: Progress,
) -> list[Tally]:
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    executor = concurrent.futures.ProcessPoolExecutor(
        num_workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(settings, counter, stop),
    )
    try:
        futures = [executor.submit(_convert_in_worker, task) for task in tasks]
        pending, skipped = set(futures), Tally()
        while pending:
            finished, pending = concurrent.futures.wait(
                pending, _POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION
            )
            for future in finished:
                skipped.merge(future.result())
            check_bad_images(skipped, settings)
            progress(counter.value, num_images)
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a conversion worker died without a message; the usual cause is memory: "
            f"use fewer processes (--num_threads, now {num_workers})"
        ) from error
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


class _WorkerState:
    """What `_start_worker` leaves for the tasks of its process."""

    settings: ConversionSettings
    counter: Any
    stop: Event


def _start_worker(settings: ConversionSettings, counter: Any, stop: Event) -> None:
    _WorkerState.settings, _WorkerState.counter, _WorkerState.stop = settings, counter, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _convert_in_worker(task: ShardTask) -> Tally:
    def on_image() -> None:
        with _WorkerState.counter.get_lock():
            _WorkerState.counter.value += 1
        if _WorkerState.stop.is_set():
            raise RuntimeError("stopped by the parent")

    return convert_shard(task, _WorkerState.settings, on_image=on_image)
