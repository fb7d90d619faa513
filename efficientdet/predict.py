"""A checkpoint's EfficientDet, ready to detect; see `object_detection.serve.inference`."""

from __future__ import annotations

from efficientdet import family
from efficientdet.settings import EfficientDetConfig
from efficientdet.task import EfficientDetTask
from engine.files import checkpoint
from object_detection.records.class_map import ClassMap, coco_class_map


def load_task(path: str, *, config: EfficientDetConfig) -> EfficientDetTask:
    """Builds the model of a checkpoint with its weights.

    Args:
      path: checkpoint prefix or folder.
      config: as `family.config_of_checkpoint` gives it.

    Raises:
      FileNotFoundError: no checkpoint there.
      ConfigError: the checkpoint lacks weights of the model.
    """
    prefix = checkpoint.find(path)
    stored = checkpoint.read_metadata(prefix)
    if stored:
        task = EfficientDetTask(config, ClassMap.from_dict(stored["task"]["class_map"]))
    else:
        task = new_task(config)
    family.load_weights(task, prefix)
    return task


def new_task(config: EfficientDetConfig, *, class_map: ClassMap | None = None) -> EfficientDetTask:
    """Builds a model with random weights, of COCO's classes unless others are given."""
    data = config.data
    if class_map is None:
        class_map = coco_class_map(class_ids=data.class_ids, num_classes=data.num_classes)
    return EfficientDetTask(config, class_map)
