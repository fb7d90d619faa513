"""A checkpoint's Mask R-CNN, ready to detect; the rest is in `object_detection.serve.inference`.

A checkpoint of another program demands conventions (padding, stride, pixel statistics) that only
its file tells, so it is read before the network is built.
"""

from __future__ import annotations

import dataclasses

from engine.config.fields import ConfigError
from engine.files import checkpoint
from maskrcnn import family
from maskrcnn.config import Conventions, with_conventions, with_our_conventions
from maskrcnn.settings import MaskRcnnConfig
from maskrcnn.task import MaskRcnnTask
from maskrcnn.weights import weights
from object_detection.records.class_map import ClassMap, coco_class_map


def load_task(path: str, *, config: MaskRcnnConfig) -> MaskRcnnTask:
    """Builds the model of a checkpoint with its weights.

    Args:
      path: checkpoint prefix or folder.
      config: as `family.config_of_checkpoint` gives it.

    Raises:
      FileNotFoundError: no checkpoint there.
      ConfigError: the checkpoint lacks weights of the model, or demands other conventions than the
        configuration names.
    """
    prefix = checkpoint.find(path)
    stored = checkpoint.read_metadata(prefix)
    if stored:
        class_map = ClassMap.from_dict(stored["task"]["class_map"])
        task = MaskRcnnTask(_with_conventions(config, None, prefix), class_map)
    else:
        task = new_task(_with_conventions(config, weights.read_source(prefix).conventions, prefix))
    family.load_weights(task, prefix)
    return task


def new_task(config: MaskRcnnConfig, *, class_map: ClassMap | None = None) -> MaskRcnnTask:
    """Builds a model with random weights, of COCO's classes unless others are given."""
    data = config.data
    if class_map is None:
        class_map = coco_class_map(class_ids=data.class_ids, num_classes=data.num_classes)
    return MaskRcnnTask(_with_conventions(config, None, ""), class_map)


def _with_conventions(
    config: MaskRcnnConfig, demanded: Conventions | None, source: str
) -> MaskRcnnConfig:
    """Fills the conventions that a configuration leaves open: those demanded, else ours."""
    model = config.model
    if demanded:
        try:
            model = with_conventions(model, demanded, source=source)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return dataclasses.replace(config, model=with_our_conventions(model))
