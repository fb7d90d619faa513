"""Export of Mask R-CNN: what `object_detection.serve.saved_model` needs of a task."""

from __future__ import annotations

from pathlib import Path

from maskrcnn.task import MaskRcnnTask
from object_detection.serve.saved_model import export_detector


def export_saved_model(task: MaskRcnnTask, folder: str | Path) -> None:
    """Writes the serving SavedModel; see `export_detector`."""
    export_detector(
        task.detect_images,
        task.class_map,
        folder,
        variables=task.model.variables,
        check_size=task.config.model.canvas_sizes[0],
        mask_rule=task.mask_rule,
    )
