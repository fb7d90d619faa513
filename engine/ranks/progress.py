"""What this rank is doing, in words that the other ranks can repeat when it no longer answers.

All ranks run the same code, so all come through the same places in the same order: the rank with
the lowest count is the one that the others wait for.
"""

from __future__ import annotations

import threading
from typing import Any

# Kinds of work, each with a time limit of its own.
STEP, COMPILE, EVALUATE, SAVE = "step", "compile", "evaluate", "save"


class Progress:
    """The place of one rank. Written by its main thread, read by `engine.ranks.watch`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._place = {"count": 0, "ticks": 0, "text": "starting", "kind": COMPILE}

    def at(self, text: str, kind: str = STEP) -> None:
        """Notes the next place; every rank comes to it once, whatever its data."""
        with self._lock:
            count = self._place["count"] + 1
            self._place = {"count": count, "ticks": 0, "text": text, "kind": kind}

    def tick(self) -> None:
        """Notes that the work at this place goes on; ranks may differ in how often."""
        self._place["ticks"] += 1

    def place(self) -> dict[str, Any]:
        """Returns count, ticks, text and kind."""
        with self._lock:
            return dict(self._place)


HERE = Progress()
