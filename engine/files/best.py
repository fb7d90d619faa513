"""The best evaluation of a run so far, and when to wait no longer for a better one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config.fields import ConfigError, nearest
from engine.config.settings import EvalConfig
from engine.files.checksums import sha256_of

_OF_CLASS = "AP_/"


class BestEvaluation:
    """Watches one number of the evaluations; larger is better.

    Args:
      settings: which number, and the patience.
      stored: what `state` gave in the run that this one continues, {} for a new run. A run that
        watches another number now, or is scored by other annotations, begins to compare anew.
      truth: checksum of the annotations; '': not known.
    """

    def __init__(self, settings: EvalConfig, stored: Mapping[str, Any], *, truth: str = ""):
        self._metric, self._patience = settings.best_metric, settings.patience
        self._min_delta = settings.min_delta
        before = stored.get("truth", "")
        self._truth = truth or before
        is_same = stored.get("metric") == self._metric and before in ("", self._truth)
        self.is_anew = not is_same and stored.get("value") is not None
        stored = stored if is_same else {}
        self.value: float | None = stored.get("value")
        self._compared: float | None = stored.get("compared")
        self._waited = int(stored.get("waited", 0))

    def update(self, metrics: Mapping[str, float]) -> bool:
        """Takes in an evaluation; returns whether it is the best so far.

        Raises:
          ConfigError: the evaluation has no such number.
        """
        value = metrics[key_of(self._metric, metrics)]
        if self._compared is None or value > self._compared + self._min_delta:
            self._compared, self._waited = value, 0
        else:
            self._waited += 1
        is_best = self.value is None or value > self.value
        if is_best:
            self.value = value
        return is_best

    @property
    def is_over(self) -> bool:
        """Whether the patience is at its end."""
        return 0 < self._patience <= self._waited

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return {
            "metric": self._metric,
            "truth": self._truth,
            "value": self.value,
            "compared": self._compared,
            "waited": self._waited,
        }

    def describe(self) -> str:
        """Returns, say, `AP 0.4130`."""
        return f"{self._metric} {self.value:.4f}"


def truth_of(settings: EvalConfig) -> str:
    """Returns the checksum of the annotations that a run is scored by, '' without any."""
    path = Path(settings.val_json_file)
    return sha256_of(path) if path.is_file() else ""


def key_of(metric: str, metrics: Mapping[str, Any]) -> str:
    """Returns under what key the metrics hold what a person calls `metric`, a class its AP.

    Raises:
      ConfigError: they do not; names the nearest that they have.
    """
    for key in (metric, metric.replace(" ", "_"), f"{_OF_CLASS}{metric}"):
        if key in metrics:
            return key
    known = [key.removeprefix(_OF_CLASS) for key in metrics]
    raise ConfigError(
        f"best_metric={metric!r}: an evaluation of this model has no such number and no such "
        f"class{nearest(metric, known)}"
    )
