"""Signals that ask a run to end: preemption, time limit, Ctrl-C, a terminal that is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Ctrl-C reaches a rank twice: from the terminal, and from the launcher that passes it on.
_SAME_REQUEST_SECONDS = 2.0


class StopSignals:
    """While entered: the first signal is noted in `received`, a later one ends the process.

    A process that was started to ignore hang-ups (nohup) goes on doing so.
    """

    def __init__(self) -> None:
        self.received = ""
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        asked = [number for number in _SIGNALS if number not in ignored]
        self._before = {number: signal.signal(number, self._handle) for number in asked}
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.received:
            if time.monotonic() - self._since > _SAME_REQUEST_SECONDS:
                os._exit(128 + number)
            return
        self._since = time.monotonic()
        self.received = signal.Signals(number).name
        # Not through the log: the signal may have come in the middle of one of its lines.
        said = (
            f"{self.received}: finishing the step, saving, leaving; a second one leaves at once\n"
        )
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, said.encode())
