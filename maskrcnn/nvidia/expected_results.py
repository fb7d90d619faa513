"""The expected-results check of the PyTorch reference: is a metric near its published mean?

An expectation is [task, metric, [mean, deviation]], task bbox or segm, metric as COCO names it,
mean between 0 and 1. It passes within so many deviations of the mean. A failure is said, not an
error: the results are written and valid all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.config.fields import ConfigError, nearest

_PREFIXES = {"bbox": "", "segm": "mask_"}
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def check_form(expected: Sequence[Any]) -> None:
    """Raises ConfigError for expectations of another form than the module's docstring says."""
    for entry in expected:
        try:
            task, metric, (mean, deviation) = entry
            is_number = all(isinstance(v, (int, float)) for v in (mean, deviation))
        except (TypeError, ValueError):
            is_number = False
        if not is_number:
            raise ConfigError(
                f"TEST.EXPECTED_RESULTS: expected [task, metric, [mean, deviation]], got {entry!r}"
            )
        for word, known in ((task, _PREFIXES), (metric, _METRICS)):
            if word not in known:
                raise ConfigError(
                    f"TEST.EXPECTED_RESULTS: expected one of {list(known)}, got {word!r}"
                    f"{nearest(str(word), known)}"
                )


def compare(
    metrics: Mapping[str, float], expected: Sequence[Any], *, sigma_tolerance: float
) -> list[str]:
    """Returns a line for each expectation, beginning with PASS or FAIL.

    Args:
      metrics: of one evaluation, under our names.
      expected: see the module's docstring.
      sigma_tolerance: deviations from the mean that still pass.
    """
    lines = []
    for task, metric, (mean, deviation) in expected:
        low, high = (mean + sign * sigma_tolerance * deviation for sign in (-1, 1))
        found = metrics.get(f"{_PREFIXES[task]}{metric}")
        if found is None:
            lines.append(f"FAIL {task} {metric}: expected {low:.4f} to {high:.4f}, not evaluated")
            continue
        verdict = "PASS" if low <= found <= high else "FAIL"
        lines.append(
            f"{verdict} {task} {metric} {found:.4f}: expected {low:.4f} to {high:.4f} "
            f"({mean:g} and {sigma_tolerance:g} deviations of {deviation:g})"
        )
    return lines
