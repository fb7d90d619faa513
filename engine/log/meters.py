"""Meters on the host: throughput, data-wait share, ETA. No TensorFlow here."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Speed(NamedTuple):
    """Of some steps; zeros where there are none.

    images_per_second: of all ranks; wait_share: 0..1, of the time, spent waiting for data.
    """

    step_seconds: float
    images_per_second: float
    wait_share: float


class Throughput:
    """Images per second and share of time spent waiting for data: of recent steps, of all steps.

    Args:
      images_per_step: global batch, accumulation included.
      warmup_steps: first steps left out of the averages (compilation).
      window: steps that the recent figures cover.
    """

    def __init__(self, images_per_step: int, *, warmup_steps: int, window: int = 50):
        self._images, self._warmup = images_per_step, warmup_steps
        self._recent: deque[tuple[float, float]] = deque(maxlen=window)
        self._seconds = self._wait = 0.0
        self.count = 0
        """Steps recorded, warm-up included."""
        self.measured_steps = 0
        """Steps after the warm-up that were not compiled."""

    def add(self, step_seconds: float, wait_seconds: float, *, is_measured: bool = True) -> None:
        """Records one step.

        Args:
          step_seconds: its whole time.
          wait_seconds: the part of it spent waiting for the batch.
          is_measured: False for one that was compiled.
        """
        self.count += 1
        if is_measured and self.count > self._warmup:
            self.measured_steps += 1
            self._recent.append((step_seconds, wait_seconds))
            self._seconds += step_seconds
            self._wait += wait_seconds

    def recent(self) -> Speed:
        """Returns the speed of the recent steps."""
        seconds = sum(seconds for seconds, _ in self._recent)
        wait = sum(wait for _, wait in self._recent)
        return self._speed(len(self._recent), seconds, wait)

    def average(self) -> Speed:
        """Returns the speed of all measured steps."""
        return self._speed(self.measured_steps, self._seconds, self._wait)

    def _speed(self, steps: int, seconds: float, wait: float) -> Speed:
        if not seconds:
            return Speed(0.0, 0.0, 0.0)
        return Speed(seconds / steps, self._images * steps / seconds, wait / seconds)

    def recent_summary(self) -> dict[str, float]:
        """Returns `images_per_second` of the recent steps, `step_seconds` and its percentiles.

        The percentiles are `step_seconds_p50`, `_p90`, `_p95` and `_p99`; `seconds` is the whole
        time.
        """
        seconds = [s for s, _ in self._recent] or [0.0]
        speed = self.recent()
        return {
            "images_per_second": speed.images_per_second,
            "step_seconds": speed.step_seconds,
            **{f"step_seconds_p{q}": float(np.percentile(seconds, q)) for q in (50, 90, 95, 99)},
            "seconds": sum(seconds),
        }


class RunningMeans:
    """Means over steps, of which no step is kept; what is not finite does not count.

    A skipped step has an infinite gradient norm.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begins anew."""
        self.count = 0
        self._sums: np.ndarray | float = 0.0
        self._counts: np.ndarray | float = 0.0
        self._last: np.ndarray | float = 0.0

    def add(self, numbers: np.ndarray) -> None:
        """Takes in one step's numbers, [n]."""
        finite = np.isfinite(numbers)
        self.count += 1
        self._sums = self._sums + np.where(finite, numbers, 0.0).astype(np.float64)
        self._counts = self._counts + finite
        self._last = numbers

    def __call__(self) -> np.ndarray:
        """Returns the means, float64 [n]; the last of what was finite in no step."""
        return np.where(self._counts > 0, self._sums / np.maximum(self._counts, 1), self._last)


def renamed(data: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Returns what `data` and `names` have in common, under each of the other names."""
    return {other: data[ours] for ours in names if ours in data for other in names[ours]}


def format_duration(seconds: float) -> str:
    """Returns '1h02m', '3m05s' or '12s'."""
    seconds = int(max(seconds, 0))
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
