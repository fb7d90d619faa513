"""What a command line asks for: a configuration, and what belongs to it beside the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Request:
    """What train.py or eval.py is asked to do.

    A family whose command line can say more than settings subclasses it, see
    `maskrcnn.nvidia.command_line.YamlRequest`.
    """

    config: Any  # None: eval.py takes the checkpoint's own
    notes: tuple[str, ...] = ()  # lines for the log's beginning
    # Data sets to evaluate: name -> overrides of the configuration; {}: as the configuration says.
    test_sets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def conclude(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns lines for the log's end, once the metrics are known."""
        del metrics
        return []

    def checkpoint_places(self) -> list[str]:
        """Returns where to look for weights if no flag says it, most wanted first."""
        return []

    def description(self, stored: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a checkpoint's description with what the command line changes in it.

        Args:
          stored: as it is; {} for weights of others.
        """
        return stored
