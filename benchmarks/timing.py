"""Times repeated calls that end with their results on the host."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import numpy as np

from engine.ranks import devices


def timed(action: Callable[[], object], *, steps: int) -> tuple[float, np.ndarray]:
    """Returns (seconds of the first call, seconds of each later call [steps]).

    Args:
      action: returns a tensor or a sequence of them; each is waited for.
      steps: later calls.
    """
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        result = action()
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            tensor.numpy()
        seconds.append(time.perf_counter() - start)
    return seconds[0], np.array(seconds[1:])


def percentiles_ms(name: str, seconds: np.ndarray) -> dict[str, float]:
    """Returns `<name>_{p10,median,p90}_ms` of calls that took `seconds`, float [n]."""
    wanted = (("p10", 10), ("median", 50), ("p90", 90))
    return {f"{name}_{q}_ms": 1000.0 * float(np.percentile(seconds, p)) for q, p in wanted}


def peak_memory_gb() -> float:
    """Returns the most memory that was in use so far, GB: of the GPU, else of the process."""
    used = devices.peak_memory_bytes()
    return (used or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9
