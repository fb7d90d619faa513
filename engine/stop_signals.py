"""Signals that ask a run to end: preemption, time limit, Ctrl-C."""

from __future__ import annotations

import os
import signal
from types import TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """While entered: the first signal is noted in `received`, a second one ends the process."""

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = signal.Signals(number).name
        # Not through the log: the signal may have come in the middle of one of its lines.
        said = (
            f"{self.received}: finishing the step, saving, leaving; a second one leaves at once\n"
        )
        os.write(2, said.encode())
