"""What a user adds to a run: something to do after a step, after an epoch and at the end.

Logs, evaluations, saves and the export are the loop's own; a hook comes beside them, for an outside
logger, a stop rule or a report. `--hooks` names them, see docs/training.md.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.config.fields import ConfigError


class StepEnd(NamedTuple):
    """A finished step, told once its numbers are there: while the next one runs.

    step, epoch: 1-based.
    numbers: means over ranks by name: the family's losses, `loss`, `reg_l2_loss`,
      `gradient_norm`, `learning_rate`, `loss_scale`, `skipped` (1: the update was left out).
    """

    step: int
    epoch: int
    numbers: Mapping[str, float]


class EpochEnd(NamedTuple):
    """An epoch whose evaluation is done, if it had one; its saves come after the hooks.

    step, epoch: 1-based, the last ones.
    metrics: of this epoch's evaluation, the same on all ranks; {} if there was none.
    validation: losses on the validation records, with --validate; else {}.
    """

    step: int
    epoch: int
    metrics: Mapping[str, float]
    validation: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended. metrics: of the last evaluation, {} if there was none."""

    exit_code: int
    epoch: int
    step: int
    metrics: Mapping[str, float]
    averages: Mapping[str, float]


class RunStart(NamedTuple):
    """What a hook is made with.

    config: the run's configuration.
    folder: the run's, model_dir.
    is_main: whether this is rank 0, which alone should write.
    resumed: description of the checkpoint that the run continues from, {} for a new run.
    """

    config: Any
    folder: Path
    is_main: bool
    resumed: Mapping[str, Any]


class Hook:
    """Base of hooks: each method may be left. All ranks call them, in the same order."""

    def after_step(self, end: StepEnd) -> None:
        """Called after each step; what takes long here holds up training."""

    def after_epoch(self, end: EpochEnd) -> bool:
        """Called after each epoch; returns True to end the run, with all that belongs to its end.

        One rank's wish ends the run on all.
        """
        del end
        return False

    def at_end(self, result: RunResult) -> None:
        """Called when the final weights are written, or the run was asked to stop."""


def make_hooks(names: Sequence[str], start: RunStart) -> list[Hook]:
    """Makes the hooks that `--hooks` names.

    Args:
      names: MODULE:NAME or FILE.py:NAME of what makes a hook from a `RunStart`, as a subclass does.
      start: of the run.

    Raises:
      ConfigError: no such module, file or name, or it makes no hook.
    """
    hooks = []
    for entry in names:
        place, _, name = entry.rpartition(":")
        try:
            maker = getattr(_module(place), name)
        except (ImportError, AttributeError, OSError, ValueError) as error:
            raise ConfigError(
                f"hooks={entry}: expected MODULE:NAME or FILE.py:NAME of a subclass of "
                f"engine.log.hooks.Hook, but {error}"
            ) from error
        hook = maker(start)
        if not isinstance(hook, Hook):
            raise ConfigError(
                f"hooks={entry}: expected to get an engine.log.hooks.Hook, "
                f"got {type(hook).__name__}"
            )
        hooks.append(hook)
    return hooks


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    name = f"hooks_of_{Path(place).stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
