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
        """Fills in resizing and padding: as the checkpoint or the initial weights had them."""
        if description:
            return _with_conventions(config, weights.Conventions.of_stored(description))

        def of_initial_weights() -> weights.Conventions:
            backbone, detector = initial_weights(config)
            if detector:
                return weights.conventions_of(detector)
            found = weights.conventions_of(backbone) if backbone else weights.Conventions()
            return found._replace(resampling="")  # a classifier's has another input

        return _with_conventions(config, distributed.on_main(of_initial_weights))

    def config_for_weights(self, config: EfficientDetConfig, prefix: str) -> EfficientDetConfig:
        """Fills in resizing and padding, as the weights demand them."""
        return _with_conventions(config, weights.conventions_of(prefix))

    def load_backbone(self, task: EfficientDetTask, path: str) -> LoadReport:
        padding = task.config.model.backbone_padding
        return weights.load_backbone(task.model, path, padding=padding)

    def load_detector(
        self, task: EfficientDetTask, path: str, *, channels: Sequence[int] | None = None
    ) -> LoadReport:
        return weights.load_detector(
            task.model, path, channels=channels, coco_channels=task.class_map.coco_channels()
        )


def _with_conventions(
    config: EfficientDetConfig, demanded: weights.Conventions
) -> EfficientDetConfig:
    """Fills in what is left open: as demanded, ours where nothing is known."""
    model = dataclasses.replace(
        config.model,
        resampling=config.model.resampling or demanded.resampling or ANTIALIASED,
        backbone_padding=config.model.backbone_padding or demanded.padding or "same",
    )
    return dataclasses.replace(config, model=model)


FAMILY = _EfficientDetFamily(settings, EfficientDetConfig, EfficientDetTask)
