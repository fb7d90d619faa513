"""Compiling several programs at the same time, with progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed

import tensorflow as tf

from engine.log.meters import format_duration
from engine.ranks.progress import HERE


def call_side_by_side(
    programs: Mapping[str, Callable[[], object]], *, say: Callable[[str], None]
) -> None:
    """Calls each program once, in threads: XLA compiles without Python's lock.

    A program that finds no memory beside the others is called again when they are done.

    Args:
      programs: name -> the call.
      say: takes a line of progress after each program.

    Raises:
      tf.errors.ResourceExhaustedError: of a program that finds no memory by itself either.
    """
    began = time.monotonic()
    say(f"compiling {len(programs)} programs side by side: {', '.join(programs)}")
    too_large = []
    with ThreadPoolExecutor(max_workers=len(programs)) as pool:
        futures = {pool.submit(call): name for name, call in programs.items()}
        for done, future in enumerate(as_completed(futures), start=1):
            name = futures[future]
            try:
                future.result()
            except tf.errors.ResourceExhaustedError:
                too_large.append(name)
            HERE.tick()
            seconds = format_duration(time.monotonic() - began)
            say(f"{done} of {len(programs)} after {seconds}: {name}")
    for name in too_large:
        say(f"{name}: no memory beside the others, now by itself")
        programs[name]()
