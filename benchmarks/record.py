"""One row of a benchmark: what was run, on what, with which versions; printed and put in a CSV."""

from __future__ import annotations

import csv
import datetime
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from engine.ranks import machine


def circumstances() -> dict[str, Any]:
    """Returns date, commit, command, machine and versions, as columns of a row."""
    report = machine.report()
    versions = report["packages"]
    tensorflow = versions.get("tensorflow") or versions.get("tensorflow-cpu", "")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": report["commit"],
        "command": shlex.join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        ),
        "machine": "; ".join(report["gpus"]) or f"CPU, {report['cores']} cores",
        "python": report["python"],
        "tensorflow": tensorflow,
        "horovod": versions.get("horovod", ""),
    }


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a CSV, writing the header first where the file is new.

    Raises:
      ValueError: the file has other columns.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(row)
    is_new = not path.exists()
    if not is_new:
        with path.open() as file:
            columns = next(csv.reader(file), [])
        if sorted(columns) != sorted(row):
            raise ValueError(f"{path} has the columns {columns}, this row has {list(row)}")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def print_table(row: Mapping[str, Any]) -> None:
    """Prints a row as two columns."""
    width = max(len(name) for name in row)
    for name, value in row.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"  {name:<{width}}  {shown}")


def define_results_flag(name: str) -> None:
    """Defines `--results` with the benchmark's own file as default."""
    default = f"benchmarks/results/{name}.csv"
    flags.DEFINE_string("results", default, "CSV to append to; '': none.")


def finish(row: Mapping[str, Any], *, results: str) -> None:
    """Prints a row together with its circumstances and appends it to the CSV `results`, if any."""
    row = {**circumstances(), **row}
    print_table(row)
    if results:
        append_row(results, row)
