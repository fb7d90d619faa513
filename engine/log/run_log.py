"""Everything a run says: console, train-<time>.log, DLLogger file, metrics.jsonl, TensorBoard.

The real DLLogger package is used where it is installed (NGC images); elsewhere the same lines are
written here: `DLLL {json}` in the file. Ranks other than 0 hold a log that does nothing, so callers
never ask for the rank.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from engine.log.event_file import EventFile
from engine.ranks import distributed
from outside_data.text import clean_lines

try:
    import dllogger
except ImportError:
    dllogger = None


class _DllFile:
    """Writer of DLLogger's JSON lines for machines without it. Appends: a resume keeps history."""

    def __init__(self, path: Path):
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._start = time.time()

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        now = time.time()
        stamp = datetime.datetime.fromtimestamp(now).strftime("%Y-%m-%d %H:%M:%S.%f")
        record = {
            "timestamp": str(now),
            "datetime": stamp,
            "elapsedtime": str(now - self._start),
            "type": kind,
        }
        _append(self._file, f"DLLL {json.dumps({**record, **fields})}")

    def metadata(self, metric: str, metadata: Mapping[str, Any]) -> None:
        self._write("METADATA", {"metric": metric, "metadata": dict(metadata)})

    def log(self, *, step: Any, data: Mapping[str, Any]) -> None:
        self._write("LOG", {"step": step, "data": dict(data)})

    def flush(self) -> None:
        self._file.flush()


def open_dllogger(path: str | Path) -> Any:
    """Opens a DLLogger file: `metadata(name, dict)`, `log(step=, data=)`, `flush()`."""
    if dllogger is None:
        return _DllFile(Path(path))
    backend = dllogger.JSONStreamBackend(dllogger.Verbosity.VERBOSE, str(path), append=True)
    dllogger.init(backends=[backend])
    return dllogger


# Units of the records that the references document.
_UNITS = {
    "avg_fps_training": "images/s",
    "avg_fps_training_per_GPU": "images/s",
    "avg_latency_training": "s",
    "training_loss": None,
    "e2e_training_time": "s",
}


class RunLog:
    """The log of a run.

    Args:
      folder: model_dir; '' logs to the console only.
      dll_name: name of the DLLogger file in the folder.
      tensorboard: whether to write TensorBoard scalars to folder/train.
    """

    def __init__(
        self, folder: str | Path = "", *, dll_name: str = "time_log.txt", tensorboard: bool = True
    ):
        self._active = distributed.is_main()
        self._text: TextIO | None = None
        self._lines: TextIO | None = None
        self._dll: Any = None
        self._board: EventFile | None = None
        if not self._active or not folder:
            return
        folder = Path(folder)
        stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
        self._text = (folder / f"train-{stamp}.log").open("a", buffering=1, encoding="utf-8")
        self._lines = (folder / "metrics.jsonl").open("a", buffering=1, encoding="utf-8")
        self._dll = open_dllogger(folder / dll_name)
        for name, unit in _UNITS.items():
            self._dll.metadata(name, {"unit": unit})
        if tensorboard:
            self._board = EventFile(folder / "train")

    def info(self, message: str) -> None:
        """Says something to people: console and text log."""
        if not self._active:
            return
        self._require_folder()
        line = f"{datetime.datetime.now():%H:%M:%S} {clean_lines(message)}"
        try:
            print(line, flush=True)
        except OSError as error:
            if self._text is None:
                raise
            _leave_console()
            line += f"\n(said only here from now on: the console is gone, {error})"
        if self._text:
            _append(self._text, line)

    def _require_folder(self) -> None:
        """Raises OSError if what is written no longer goes into the run's folder."""
        if self._text is None:
            return
        try:
            is_there = os.path.samestat(os.fstat(self._text.fileno()), os.stat(self._text.name))
        except OSError:
            is_there = False
        if not is_there:
            raise FileNotFoundError(
                f"{self._text.name} is gone: model_dir was deleted, moved or unmounted during the "
                "run. Nothing more can be saved there; bring it back, or choose another --model_dir"
            )

    def warn(self, message: str) -> None:
        """Says something that wants attention."""
        self.info(f"WARNING: {message}")

    def dll(self, step: Any, data: Mapping[str, Any]) -> None:
        """Writes one DLLogger record; step [] stands for the whole run."""
        if self._dll:
            self._dll.log(step=step, data=finite_or_none(data))

    def numbers(self, kind: str, data: Mapping[str, Any]) -> None:
        """Appends a record to metrics.jsonl."""
        self._require_folder()
        if self._lines:
            record = {"kind": kind, "time": round(time.time(), 3), **finite_or_none(data)}
            _append(self._lines, json.dumps(record))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes TensorBoard scalars."""
        if self._board:
            self._board.scalars(step, values)

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Shows picture files (JPEG, PNG) in TensorBoard, by name."""
        if self._board:
            self._board.pictures(step, pictures)

    def flush(self) -> None:
        """Puts everything on disk."""
        if self._board:
            self._board.flush()
        if self._dll:
            self._dll.flush()
        sys.stdout.flush()


def _append(file: TextIO, line: str) -> None:
    """Writes a line; an error, as of a full disk, names the file."""
    try:
        file.write(line + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def _leave_console() -> None:
    """Has what is printed lead nowhere: its reader, or the terminal, has ended."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def finite_or_none(data: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces what JSON cannot hold, infinities and NaN, by None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in data.items()
    }
