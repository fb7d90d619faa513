"""EfficientDet as the commands see it; what all families do alike is in `detector.family`."""

from __future__ import annotations

from collections.abc import Sequence

from detector.family import DetectorFamily
from detector.weight_loading import LoadReport
from efficientdet import settings, weights
from efficientdet.settings import EfficientDetConfig
from efficientdet.task import EfficientDetTask


class _EfficientDetFamily(DetectorFamily):
    def validate(self, config: EfficientDetConfig) -> None:
        settings.validate(config)

    def load_backbone(self, task: EfficientDetTask, path: str) -> LoadReport:
        return weights.load_backbone(task.model, path)

    def load_detector(
        self, task: EfficientDetTask, path: str, *, channels: Sequence[int] | None = None
    ) -> LoadReport:
        return weights.load_detector(
            task.model, path, channels=channels, coco_channels=task.class_map.coco_channels()
        )


FAMILY = _EfficientDetFamily(settings, EfficientDetConfig, EfficientDetTask)
