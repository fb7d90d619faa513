"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_until(look: Callable[[], T], otherwise: Callable[[], str], *, seconds: float = 20) -> T:
    """Looks again and again until there is something to see; returns it.

    Args:
      look: what is waited for, true once it is there.
      otherwise: what a failure says.
    """
    end = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < end, otherwise()
        time.sleep(0.01)
    return seen


def is_running(pid: int) -> bool:
    """Returns False for a process that is gone or waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
