"""Outside loggers as hooks of a run: Weights & Biases, MLflow. Imported only when asked for.

Both get the numbers of the steps and of the evaluations under the names of metrics.jsonl, the
settings, and at the end the report. Where they send them is theirs to know: WANDB_PROJECT and
WANDB_MODE, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.fields import ConfigError, nearest, to_dict
from engine.log.hooks import EpochEnd, Hook, RunResult, RunStart, StepEnd
from outside_data.text import clean

_REPORT = Path("evaluation") / "report.html"
_NAME_LENGTH = 250  # MLflow's most


class OutsideLogger(Hook):
    """Sends numbers on; loggers differ in `_start`, `_send` and `_close`."""

    package = ""

    def __init__(self, start: RunStart):
        self._folder, self._every = start.folder, start.config.train.log_steps
        try:
            self.library = importlib.import_module(self.package)
        except ImportError as error:
            raise ConfigError(
                f"loggers={self.package}: {error}; install it with `pip install {self.package}`, "
                "or leave it out"
            ) from error
        # Folders may have names that are no UTF-8, which neither of them takes.
        settings = json.loads(
            json.dumps(to_dict(start.config), ensure_ascii=False).encode(errors="replace")
        )
        self._start(clean(start.folder.name), settings, is_resumed=bool(start.resumed))

    def _start(self, name: str, settings: Mapping[str, Any], *, is_resumed: bool) -> None:
        """Begins the run there."""
        raise NotImplementedError

    def _send(self, step: int, numbers: Mapping[str, float]) -> None:
        """Sends numbers."""
        raise NotImplementedError

    def _close(self, report: Path | None, *, is_done: bool) -> None:
        """Sends the report, if there is one, and ends the run there."""
        raise NotImplementedError

    def after_step(self, end: StepEnd) -> None:
        """Sends the step's numbers, every --log_steps."""
        if end.step % self._every == 0:
            self._send(end.step, {f"train/{name}": value for name, value in end.numbers.items()})

    def after_epoch(self, end: EpochEnd) -> bool:
        """Sends what was measured after the epoch."""
        numbers = {f"eval/{name}": value for name, value in end.metrics.items()}
        numbers |= {f"validation/{name}": value for name, value in end.validation.items()}
        self._send(end.step, {"epoch": end.epoch, **numbers})
        return False

    def at_end(self, result: RunResult) -> None:
        """Sends the report."""
        report = self._folder / _REPORT
        self._close(report if report.is_file() else None, is_done=result.exit_code == 0)


class WandbLogger(OutsideLogger):
    """Weights & Biases."""

    package = "wandb"

    def _start(self, name: str, settings: Mapping[str, Any], *, is_resumed: bool) -> None:
        # The same folder continues the same run there.
        known_as = hashlib.sha256(os.fsencode(self._folder.resolve())).hexdigest()[:16]
        self._run = self.library.init(
            name=name, id=known_as, config=settings, dir=str(self._folder), resume="allow"
        )

    def _send(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def _close(self, report: Path | None, *, is_done: bool) -> None:
        if report:
            self._run.log({"report": self.library.Html(report.read_text(encoding="utf-8"))})
        self._run.finish(exit_code=0 if is_done else 1)


class MlflowLogger(OutsideLogger):
    """MLflow. Its names allow no characters but letters, digits and `_-. /`, as of a path."""

    package = "mlflow"

    def _start(self, name: str, settings: Mapping[str, Any], *, is_resumed: bool) -> None:
        self.library.start_run(run_name=name)
        self.library.log_dict(dict(settings), "config.yaml")
        self.library.set_tag("resumed", str(is_resumed))

    def _send(self, step: int, numbers: Mapping[str, float]) -> None:
        self.library.log_metrics(
            {_plain(name): float(value) for name, value in numbers.items()}, step=step
        )

    def _close(self, report: Path | None, *, is_done: bool) -> None:
        if report:
            self.library.log_artifact(str(report))
        self.library.end_run("FINISHED" if is_done else "KILLED")


LOGGERS = {logger.package: logger for logger in (WandbLogger, MlflowLogger)}


def make_loggers(names: Sequence[str], start: RunStart) -> list[Hook]:
    """Makes the loggers that `--loggers` names, on rank 0 only.

    Raises:
      ConfigError: one is unknown or not installed.
    """
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(
                f"loggers={name!r}: expected {' or '.join(LOGGERS)}{nearest(name, LOGGERS)}; "
                "--hooks adds others"
            )
    return [LOGGERS[name](start) for name in names if start.is_main]


def _plain(name: str) -> str:
    return posixpath.normpath(re.sub(r"[^\w\-. /]", "_", name))[:_NAME_LENGTH]
