"""What a training run has written about itself: the course of losses, rate and scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from object_detection.report.charts import Line
from outside_data.files import open_file

RECORDS = "metrics.jsonl"
Records = Sequence[Mapping[str, Any]]
# Points that a line of steps is reduced to.
_MOST_POINTS = 300
_MOST_LINE_BYTES = 1 << 20
_SCORES = ("AP", "AP50", "AP75", "mask_AP", "mask_AP50")
# Of a step's numbers, what is not a loss.
_NO_LOSSES = {
    *("step", "epoch", "time", "learning_rate", "gradient_norm", "loss_scale", "skipped"),
    *("images_per_second", "data_wait_share", "reg_l2_loss"),
}


def find_run(places: Iterable[Path]) -> Path | None:
    """Returns the first of some folders that holds the records of a run."""
    return next((place for place in places if (place / RECORDS).is_file()), None)


def read_records(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns kind -> records of a run, in order; of a step done twice the later record.

    A last line that is half written is left out.
    """
    found: dict[str, dict[Any, dict[str, Any]]] = {}
    with open_file(run / RECORDS, most=None) as file:
        for line in iter(lambda: file.readline(_MOST_LINE_BYTES), b""):
            try:
                record = json.loads(line)
                kind = record.pop("kind")
                key = record.get("step", record.get("epoch"))
                found.setdefault(kind, {})[float(key or 0)] = record
            except (
                AttributeError,
                LookupError,
                OverflowError,
                RecursionError,
                TypeError,
                ValueError,
            ):
                continue
    return {kind: [records[key] for key in sorted(records)] for kind, records in found.items()}


def loss_lines(steps: Records) -> list[Line]:
    """Returns the total loss and its parts over the steps.

    Parts that are always 0, or all there is, are left out.
    """
    names = [name for name in (steps[0] if steps else ()) if name not in _NO_LOSSES]
    names.sort(key=lambda name: name != "loss")
    lines = [line_of(steps, name) for name in names]
    return [
        line
        for i, line in enumerate(lines)
        if len(line.x) and np.any(line.y) and (i == 0 or not np.array_equal(line.y, lines[0].y))
    ]


def line_of(records: Records, name: str, *, over: str = "step") -> Line:
    """Returns a number over the steps or epochs, as means of equal parts where they are many."""
    values = _numbers(records, over, name)
    values = values[np.argsort(values[:, 0], kind="stable")]
    parts = np.array_split(values, min(len(values), _MOST_POINTS)) if len(values) else []
    means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2)
    return Line(name, means[:, 0], means[:, 1])


def median_speed(steps: Records) -> float:
    """Returns the images a second of a run's steps, 0 where they are not recorded."""
    speeds = _numbers(steps, "images_per_second")
    speeds = speeds[speeds > 0]
    return float(np.median(speeds)) if len(speeds) else 0.0


def score_lines(evaluations: Records) -> list[Line]:
    """Returns AP, AP50 and so on over the epochs, in percent; -1 is no score."""
    lines = [
        line_of([r for r in evaluations if r.get(name) != -1], name, over="epoch")
        for name in _SCORES
    ]
    return [line._replace(y=100 * line.y) for line in lines if len(line.x)]


def _numbers(records: Records, *names: str) -> np.ndarray:
    """Returns float64 [n, len(names)] of the records in which all of these are numbers."""
    rows = [[record.get(name) for name in names] for record in records]
    rows = [row for row in rows if all(isinstance(value, (int, float)) for value in row)]
    return np.array(rows, np.float64).reshape(-1, len(names))
