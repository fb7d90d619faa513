"""What a run needs of a model family beside its task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.task import Task


class Family(Protocol):
    """What a run needs of a model family beside its task. A module with these names will do."""

    COMPARED_SECTIONS: tuple[str, ...]

    def validate(self, config: Any) -> None:
        """Raises ConfigError for settings that cannot work together."""

    def make_task(
        self,
        config: Any,
        *,
        description: Mapping[str, Any],
        training: bool,
        batch_norm: Any,
        seed: int,
    ) -> Task:
        """Binds data and model; on all ranks.

        description: of the checkpoint to continue or evaluate, {} for a new run.
        """

    def describe(self, task: Task) -> dict[str, Any]:
        """What a checkpoint must know of the task beside the configuration (class map, data)."""

    def load_initial_weights(self, config: Any, task: Task) -> list[str]:
        """Loads --backbone_init and --pretrained_ckpt; returns lines for the log. Rank 0 only."""

    def load_weights(self, task: Task, prefix: str) -> list[str]:
        """Loads a checkpoint for evaluation; returns lines for the log. Rank 0 only."""

    def export(self, task: Task, folder: Path) -> object:
        """Writes the serving SavedModel with the weights now in the model. Rank 0 only."""

    def write_evaluation(
        self, task: Task, rows: Any, metrics: Mapping[str, float], *, folder: Path, epoch: int
    ) -> list[str]:
        """Writes detections and metrics; returns lines for the log. Rank 0 only."""
