"""The programs of this project: where they lie, and running them from Python.

A training joins ranks, takes hold of devices and signals, and ends its process when it fails. So it
runs in a process of its own, as does an evaluation; the caller's keeps what it has.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from outside_data.files import read_json
from ringdet.own_packages import ROOT


class Program(NamedTuple):
    """path: of the file, from `ROOT`; purpose: one line."""

    path: str
    purpose: str


PROGRAMS = {
    "train": Program("train.py", "train a detector, on records or a data folder"),
    "eval": Program("eval.py", "score a checkpoint and write its report"),
    "infer": Program("infer.py", "draw detections on images, write them as JSON"),
    "export": Program("export.py", "write a model that runs without this project"),
    "convert": Program("dataset/convert.py", "turn annotations of any known format into records"),
    "check": Program("dataset/check.py", "say what is wrong with a data set"),
    "draw": Program("dataset/draw_examples.py", "draw training examples as the network sees them"),
    "quickstart": Program("scripts/quickstart.py", "the whole way on a small set or your folder"),
    "report": Program("report.py", "write the report of an evaluation again, or compare runs"),
}

_EVALUATED = re.compile(r"detections and metrics are in (.+)$", re.MULTILINE)


def train(**flags: Any) -> dict[str, float]:
    """Trains as `ringdet train` does, and prints what it says.

    Args:
      flags: of train.py, for instance data="photos", model_dir="runs/mine", amp=False. Lists are
        joined by commas, as is hparams={"image_size": 640}; None is left out.

    Returns:
      The metrics of the last evaluation, {} where there was none; of a run that is finished already
      those that it has.

    Raises:
      RuntimeError: the training failed; says what it said.
    """
    said = _run("train", flags)
    # Further sets may have been evaluated afterwards, in folders below.
    found = _EVALUATED.search(said)
    return _metrics(found[1]) if found else {}


def evaluate(ckpt_path: str | Path, **flags: Any) -> dict[str, float]:
    """Evaluates a checkpoint as `ringdet eval` does, and prints what it says.

    Args:
      ckpt_path: checkpoint prefix, or the folder of a run.
      flags: of eval.py; as of `train`.

    Returns:
      COCO's numbers and the AP of each class, as in metrics.json; {} if nothing was scored.

    Raises:
      RuntimeError: the evaluation failed; says what it said.
    """
    found = _EVALUATED.search(_run("eval", {"ckpt_path": ckpt_path, **flags}))
    return _metrics(found[1]) if found else {}


def _metrics(folder: str) -> dict[str, float]:
    return read_json(Path(folder) / "metrics.json")


def as_arguments(flags: Mapping[str, Any]) -> list[str]:
    """Returns the words of a command line: x=True gives --x, x=False --nox."""
    words = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no{name}")
        elif isinstance(value, Mapping):
            words.append(f"--{name}={as_hparams(value)}")
        elif value is not None:
            several = isinstance(value, Sequence) and not isinstance(value, str)
            words.append(f"--{name}={','.join(map(str, value)) if several else value}")
    return words


def as_hparams(values: str | os.PathLike[str] | Mapping[str, Any]) -> str:
    """Returns settings as `--hparams` reads them; what is none of a mapping is left out."""
    if isinstance(values, Mapping):
        return ",".join(f"{key}={json.dumps(v)}" for key, v in values.items() if v is not None)
    return os.fspath(values)


def _run(name: str, flags: Mapping[str, Any]) -> str:
    """Runs a program to its end; returns its standard output."""
    command = [sys.executable, str(ROOT / PROGRAMS[name].path), *as_arguments(flags)]
    lines: list[str] = []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)  # a training saves what it has
        process.wait()
        raise
    if code:
        reasons = [line for line in lines if line.startswith("ERROR")] or lines[-5:]
        raise RuntimeError(f"ringdet {name} ended with {code}: {''.join(reasons).strip()}")
    return "".join(lines)
