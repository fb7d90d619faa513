"""What a training run has written about itself: the course of losses, rate and scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from object_detection.report.charts import Line
from outside_data.files import open_file

RECORDS = "metrics.jsonl"
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


def loss_lines(steps: list[Mapping[str, Any]]) -> list[Line]:
    """Returns the total loss and its parts over the steps.

    Parts that are always 0, or all there is, are left out.
    """
    names = [name for name in (steps[0] if steps else ()) if name not in _NO_LOSSES]
    names.sort(key=lambda name: name != "loss")
    lines = [over_steps(steps, name) for name in names]
    return [
        line
        for i, line in enumerate(lines)
        if len(line.x) and np.any(line.y) and (i == 0 or not np.array_equal(line.y, lines[0].y))
    ]


def over_steps(steps: list[Mapping[str, Any]], name: str) -> Line:
    """Returns a number over the steps, as means of equal parts where the steps are many."""
    points = [(r["step"], r[name]) for r in steps if isinstance(r.get(name), (int, float))]
    values = np.array(points, float).reshape(-1, 2)
    parts = np.array_split(values, min(len(values), _MOST_POINTS)) if len(values) else []
    means = np.array([part.mean(axis=0) for part in parts]).reshape(-1, 2)
    return Line(name, means[:, 0], means[:, 1])


def median_speed(run: Path) -> float:
    """Returns the images a second of a run's steps, 0 where they are not recorded."""
    steps = read_records(run).get("step", ())
    speeds = [r["images_per_second"] for r in steps if r.get("images_per_second")]
    return float(np.median(speeds)) if speeds else 0.0


def score_lines(evaluations: list[Mapping[str, Any]]) -> list[Line]:
    """Returns AP, AP50 and so on over the epochs, in percent."""
    lines = []
    for name in _SCORES:
        points = [(r["epoch"], 100 * r[name]) for r in evaluations if r.get(name, -1) >= 0]
        if points:
            values = np.array(points, float)
            lines.append(Line(name, values[:, 0], values[:, 1]))
    return lines
