"""Mask R-CNN as the commands see it; what all families do alike is in `detector.family`.

Weights demand conventions (padding, place of the stride, pixel statistics), so a task's
configuration is fixed only once the weights are known; it is `task.config`, and a checkpoint
records it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detector.family import DetectorFamily, initial_weights
from detector.weight_loading import LoadReport
from engine.config.fields import ConfigError, from_dict, override
from engine.ranks import distributed
from engine.task import MaskedRows
from maskrcnn import settings, validation
from maskrcnn.config import Conventions, conventions_of, with_conventions, with_our_conventions
from maskrcnn.settings import MaskRcnnConfig
from maskrcnn.task import MaskRcnnTask
from maskrcnn.weights import weights
from object_detection.masks.rows import with_masks
from object_detection.records.card import DataCard

_LOG = logging.getLogger(__name__)


class _MaskRcnnFamily(DetectorFamily):
    def validate(self, config: MaskRcnnConfig) -> None:
        validation.validate(config)

    def check_training_data(self, config: MaskRcnnConfig, card: DataCard) -> None:
        """Raises ConfigError for records without masks; warns of slow ones."""
        if not config.model.include_mask:
            return
        if card.mask_format is None:
            raise ConfigError(
                f"{config.data.training_file_pattern} holds no masks, but {config.model.name} is "
                "trained on masks (image/object/mask_112): convert it again with "
                "create_coco_tfrecord.py --include_masks, or train a model without masks "
                "(fasterrcnn-*)"
            )
        if card.mask_format == "png" and distributed.is_main():
            _LOG.warning(
                "%s holds masks as PNG images of the whole picture: every one is decoded for every "
                "step, which is slow. Convert the set again with create_coco_tfrecord.py "
                "--include_masks (packed masks, image/object/mask_112)",
                config.data.training_file_pattern,
            )

    def settled_config(
        self, config: MaskRcnnConfig, description: Mapping[str, Any]
    ) -> MaskRcnnConfig:
        """Fills the conventions that the configuration leaves open, on all ranks alike."""
        if description:
            stored = from_dict(MaskRcnnConfig, description["config"]).model
            demanded = [("the checkpoint", conventions_of(stored))]
        else:
            demanded = distributed.on_main(lambda: _demanded_conventions(config))
        return _with_conventions(config, demanded)

    def config_for_weights(self, config: MaskRcnnConfig, prefix: str) -> MaskRcnnConfig:
        """Fills the conventions that a configuration leaves open by those of the weights."""
        conventions = weights.read_source(prefix).conventions
        return _with_conventions(config, [(prefix, conventions)] if conventions else [])

    def with_input_size(self, config: MaskRcnnConfig, size: str) -> MaskRcnnConfig:
        """Makes that size the only canvas."""
        config = super().with_input_size(config, size)
        canvases = {"model.canvases": (config.model.image_size,)}
        return override(config, canvases, source="--image_size")

    def load_backbone(self, task: MaskRcnnTask, path: str) -> LoadReport:
        return weights.load_backbone(task.model, path)

    def load_detector(
        self, task: MaskRcnnTask, path: str, *, channels: Sequence[int] | None = None
    ) -> LoadReport:
        source = weights.read_source(path)
        if channels is None and weights.has_coco_ids(source):
            channels = task.class_map.coco_channels()
        return weights.load_detector(task.model, source, channels=channels)

    def load_initial_weights(self, config: MaskRcnnConfig, task: MaskRcnnTask) -> list[str]:
        """Loads them as all families do; says so where without any nothing is learned."""
        model = task.config.model
        lines = super().load_initial_weights(config, task)
        if not lines and model.norm == "frozen_bn" and not model.finetune_bn:
            return [
                "no initial weights, and batch norm that is never trained: from scratch a network "
                "learns with norm=group_norm or norm=batch_norm and freeze_at=0"
            ]
        return lines

    def detection_files(
        self, task: MaskRcnnTask, rows: np.ndarray | MaskedRows
    ) -> dict[str, list[dict[str, Any]]]:
        """Adds bbox.json and segm.json, as the PyTorch reference writes them."""
        boxes, masks = rows if task.has_masks else (rows, None)
        found = task.evaluator.to_detections(boxes)
        if masks is None:
            return {"bbox.json": found, "detections.json": found}
        return {
            "bbox.json": found,
            "detections.json": with_masks(found, masks),
            "segm.json": with_masks(found, masks, keep_boxes=False),
        }


def _demanded_conventions(config: MaskRcnnConfig) -> list[tuple[str, Conventions]]:
    """Returns (path, conventions) of the initial weights that have some. Rank 0 only."""
    backbone, detector = initial_weights(config)
    demanded = []
    if backbone:
        conventions = weights.read_source(backbone).conventions
        demanded.append((backbone, conventions and conventions.of_backbone()))
    if detector:
        demanded.append((detector, weights.read_source(detector).conventions))
    return [(path, conventions) for path, conventions in demanded if conventions]


def _with_conventions(
    config: MaskRcnnConfig, demanded: Sequence[tuple[str, Conventions]]
) -> MaskRcnnConfig:
    """Fills the conventions that a configuration leaves open: those demanded, else ours."""
    model = config.model
    for source, conventions in demanded:
        try:
            model = with_conventions(model, conventions, source=source)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return dataclasses.replace(config, model=with_our_conventions(model))


FAMILY = _MaskRcnnFamily(settings, MaskRcnnConfig, MaskRcnnTask)
