"""How much a file may become in memory: a budget for what unpacking and copying make of it."""

from __future__ import annotations

MOST_EXPANSION = 16
"""Bytes of arrays for each byte of a file of weights, besides FREE_BYTES."""
FREE_BYTES = 64 << 20


class Budget:
    """Counts what is made of a file of so many bytes."""

    def __init__(self, file_bytes: int) -> None:
        self._most = self._left = MOST_EXPANSION * file_bytes + FREE_BYTES

    def take(self, num_bytes: int) -> None:
        """Counts bytes; ValueError where they exceed what a file of this size may become."""
        self._left -= num_bytes
        if self._left < 0:
            raise ValueError(
                f"it would become more than {self._most:,} bytes in memory, {MOST_EXPANSION} times "
                "its size: no file of weights does that"
            )
