"""Several runs side by side: what each has reached, and the settings by which they differ.

It reads what a run leaves from its start on, config.yaml and metrics.jsonl, and no checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config.fields import ConfigError, flatten
from engine.files.best import key_of
from object_detection.report.history import RECORDS, read_records
from outside_data.files import read_yaml
from outside_data.text import clean

_SETTINGS = "config.yaml"
_MOST_SETTINGS, _MOST_LETTERS = 8, 40


def compare_runs(folders: Sequence[Path]) -> str:
    """Returns a table of runs, the best first, each with its values of the settings that differ.

    Best is what `best_metric` says, AP where the runs do not agree on it. What lies beside the runs
    (their records, their logs) is passed over.

    Raises:
      ConfigError: none of the folders is a run's.
      OSError, ValueError: a file of a run cannot be read.
    """
    runs = [folder for folder in folders if (folder / _SETTINGS).is_file()]
    if not runs:
        named = ", ".join(clean(str(folder)) for folder in folders[:3]) or "no folder"
        raise ConfigError(f"expected folders of runs, which hold a {_SETTINGS}, got {named}")
    settings = [_settings(run) for run in runs]
    metrics = {found.get("eval.best_metric", "AP") for found in settings}
    metric = metrics.pop() if len(metrics) == 1 else "AP"
    keys = dict.fromkeys(key for found in settings for key in found)
    differ = [key for key in keys if any(s.get(key) != settings[0].get(key) for s in settings)]
    shown = differ[:_MOST_SETTINGS]
    rows = []
    for run, found in zip(runs, settings):
        best, cells = _reached(run, metric)
        own = [clean(str(found.get(key)), most=_MOST_LETTERS) for key in shown]
        rows.append((best, [str(run), *cells, *own]))
    rows.sort(key=lambda row: -row[0])
    head = ["run", metric, "epoch", "AP50", "last AP", "epoch", "loss", "step", "", *shown]
    table = [[clean(cell) for cell in row] for row in (head, *(cells for _, cells in rows))]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
    if len(differ) > _MOST_SETTINGS:
        lines.append(f"{len(differ) - _MOST_SETTINGS} more settings differ: see each {_SETTINGS}")
    return "\n".join(lines)


def _settings(folder: Path) -> dict[str, Any]:
    """Returns section.field -> value; in a path the run's own folder is called RUN."""
    flat = flatten(read_yaml(folder / _SETTINGS) or {})
    own = flat.get("train.model_dir") or "RUN"
    return {k: v.replace(own, "RUN") if isinstance(v, str) else v for k, v in flat.items()}


def _reached(folder: Path, metric: str) -> tuple[float, list[str]]:
    """Returns the best of the metric, -1 where nothing was evaluated, and the cells of a row."""
    records = read_records(folder) if (folder / RECORDS).is_file() else {}
    score, cells = -1.0, ["-"] * 7
    if evaluated := records.get("evaluation"):
        scores = [float(record[key_of(metric, record)]) for record in evaluated]
        score = max(scores)
        best, latest = evaluated[scores.index(score)], evaluated[-1]
        shown = f"{score:.4f} {best['epoch']} {best['AP50']:.4f} {latest['AP']:.4f}"
        cells[:5] = [*shown.split(), str(latest["epoch"])]
    last = {kind: of_kind[-1]["step"] for kind, of_kind in records.items() if kind != "validation"}
    if "step" in last:
        cells[5:] = [f"{records['step'][-1]['loss']:.4g}", str(last["step"])]
    return score, [*cells, "done" if last.get("end", -1) >= last.get("step", 0) else "not done"]
