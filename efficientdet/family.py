"""EfficientDet as the commands see it; what all families do alike is in `detector.family`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from detector.family import DetectorFamily, initial_weights
from detector.weight_loading import LoadReport
from efficientdet import settings
from efficientdet.settings import EfficientDetConfig
from efficientdet.task import EfficientDetTask
from efficientdet.weights import weights
from engine.ranks import distributed
from object_detection.input.geometry import ANTIALIASED


class _EfficientDetFamily(DetectorFamily):
    def validate(self, config: EfficientDetConfig) -> None:
        settings.validate(config)

    def settled_config(
        self, config: EfficientDetConfig, description: Mapping[str, Any]
    ) -> EfficientDetConfig:
        """Fills in how images are resized: as the checkpoint or the initial weights had it."""
        if description:
            return _resampled(config, description["config"]["model"].get("resampling", ""))

        def of_initial_weights() -> str:
            detector = initial_weights(config)[1]
            return weights.resampling_of(detector) if detector else ""

        return _resampled(config, distributed.on_main(of_initial_weights))

    def config_for_weights(self, config: EfficientDetConfig, prefix: str) -> EfficientDetConfig:
        """Fills in how images are resized, as the weights demand it."""
        return _resampled(config, weights.resampling_of(prefix))

    def load_backbone(self, task: EfficientDetTask, path: str) -> LoadReport:
        return weights.load_backbone(task.model, path)

    def load_detector(
        self, task: EfficientDetTask, path: str, *, channels: Sequence[int] | None = None
    ) -> LoadReport:
        return weights.load_detector(
            task.model, path, channels=channels, coco_channels=task.class_map.coco_channels()
        )


def _resampled(config: EfficientDetConfig, resampling: str) -> EfficientDetConfig:
    """Fills in the resampling where it is left open; antialiased where nothing else is known."""
    chosen = config.model.resampling or resampling or ANTIALIASED
    return dataclasses.replace(config, model=dataclasses.replace(config.model, resampling=chosen))


FAMILY = _EfficientDetFamily(settings, EfficientDetConfig, EfficientDetTask)
