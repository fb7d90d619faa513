"""Mask R-CNN as train.py and eval.py see it: making tasks, loading weights, writing results.

The functions are those of `engine.run.Family`. Weights demand conventions (padding, place of the
stride, pixel statistics), so a task's configuration is fixed only once the weights are known; it is
`task.config`, and a checkpoint records it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine import cli
from engine.config.fields import ConfigError, from_dict, override
from engine.files import checkpoint
from engine.files.weight_files import weights_path
from engine.ranks import distributed
from engine.task import MaskedRows
from maskrcnn.config import (
    Conventions,
    ModelConfig,
    conventions_of,
    with_conventions,
    with_our_conventions,
)
from maskrcnn.export import export_saved_model
from maskrcnn.settings import COMPARED_SECTIONS, MaskRcnnConfig, base_config, preset
from maskrcnn.task import MaskRcnnTask
from maskrcnn.validation import validate
from maskrcnn.weights import weights
from maskrcnn.weights.weight_names import TORCHVISION
from object_detection.coco.categories import COCO_CATEGORIES
from object_detection.masks.rows import with_masks
from object_detection.metrics.coco import METRIC_NAMES
from object_detection.metrics.detection_rows import write_detections_json
from object_detection.metrics.report import csv_line, format_metrics_table
from object_detection.metrics.set_scores import MASK_PREFIX
from object_detection.records.card import DataCard
from object_detection.records.card_builder import find_or_scan_card
from object_detection.records.class_map import ClassMap, class_map_of_run

__all__ = ["COMPARED_SECTIONS", "validate"]

_LOG = logging.getLogger(__name__)
_TESTDEV_FILE = "detections_test-dev2017_test_results.json"


def make_task(
    config: MaskRcnnConfig,
    *,
    description: Mapping[str, Any],
    training: bool,
    batch_norm: Any,
    seed: int,
) -> MaskRcnnTask:
    """Binds data and model; see `engine.run.Family`."""
    train_card = _card(config.data.training_file_pattern) if training else None
    eval_card = _card(config.eval.val_file_pattern)
    if train_card:
        train_card.require_boxes()
        if config.model.include_mask:
            _require_masks(config, train_card)
    class_map = class_map_of_run(
        train_card,
        eval_card,
        stored=description["task"]["class_map"] if description else None,
        class_ids=config.data.class_ids,
        num_classes=config.data.num_classes,
        label_map=config.data.label_map,
    )
    model = _with_known_conventions(config, description)
    return MaskRcnnTask(
        dataclasses.replace(config, model=model),
        class_map,
        train_card=train_card,
        eval_card=eval_card,
        batch_norm=batch_norm,
        seed=seed,
    )


def _card(pattern: str) -> DataCard | None:
    """Returns the card of records; rank 0 reads, as records without a card are all read for it."""
    return distributed.on_main(lambda: find_or_scan_card(pattern)) if pattern else None


def _require_masks(config: MaskRcnnConfig, card: DataCard) -> None:
    """Raises ConfigError for records without masks; warns of slow ones."""
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


def _with_known_conventions(config: MaskRcnnConfig, description: Mapping[str, Any]) -> ModelConfig:
    """Fills the conventions that the configuration leaves open, on all ranks alike."""
    model = config.model
    if description:
        stored = from_dict(MaskRcnnConfig, description["config"]).model
        model = with_conventions(model, conventions_of(stored), source="the checkpoint")
    else:
        for path, demanded in distributed.on_main(lambda: _demanded_conventions(config)):
            try:
                model = with_conventions(model, demanded, source=path)
            except ValueError as error:
                raise ConfigError(str(error)) from error
    return with_our_conventions(model)


def _demanded_conventions(config: MaskRcnnConfig) -> list[tuple[str, Conventions]]:
    """Returns (path, conventions) of the initial weights that have some. Rank 0 only."""
    backbone, detector = _initial_weights(config)
    demanded = []
    if backbone:
        conventions = weights.read_source(backbone).conventions
        demanded.append((backbone, conventions and conventions.of_backbone()))
    if detector:
        demanded.append((detector, weights.read_source(detector).conventions))
    return [(path, conventions) for path, conventions in demanded if conventions]


def _initial_weights(config: MaskRcnnConfig) -> tuple[str, str]:
    """Returns the paths of backbone and detector weights, '' for none."""
    train = config.train
    backbone = weights_path(train.backbone_init) if train.backbone_init else ""
    detector = checkpoint.newest_or_path(train.pretrained_ckpt) if train.pretrained_ckpt else ""
    return backbone, detector


def describe(task: MaskRcnnTask) -> dict[str, Any]:
    """The class map and the identity of the training data."""
    card = task.train_card
    return {
        "class_map": task.class_map.to_dict(),
        "data": {"fingerprint": card.fingerprint, "images": card.num_images},
    }


def load_initial_weights(config: MaskRcnnConfig, task: MaskRcnnTask) -> list[str]:
    """Loads `--backbone_init`, then `--pretrained_ckpt`; returns the tables of what was loaded."""
    backbone, detector = _initial_weights(config)
    reports = []
    if backbone:
        reports.append(weights.load_backbone(task.model, backbone))
    if detector:
        reports.append(_load_detector(task, detector))
    if not reports and task.config.model.norm == "frozen_bn" and not task.config.model.finetune_bn:
        return [
            "no initial weights, and batch norm that is never trained: from scratch a network "
            "learns with norm=group_norm or norm=batch_norm and freeze_at=0"
        ]
    return [line for report in reports for line in report.format_table().splitlines()]


def _load_detector(task: MaskRcnnTask, path: str) -> weights.LoadReport:
    """Loads a detector of ours or of others."""
    source = weights.read_source(path)
    channels = _coco_channels(task.class_map) if source.layout == TORCHVISION else None
    return weights.load_detector(task.model, source, class_channels=channels)


def _coco_channels(class_map: ClassMap) -> Sequence[int] | None:
    """Returns the channels of torchvision's detectors, COCO's ids less 1; None for other sets."""
    names = {category_id: name for category_id, name in class_map.categories.values()}
    is_coco = all(COCO_CATEGORIES.get(number) == name for number, name in names.items())
    if not is_coco or len(class_map.categories) != class_map.num_classes:
        return None
    return [class_map.categories[channel][0] - 1 for channel in range(class_map.num_classes)]


def load_weights(task: MaskRcnnTask, prefix: str) -> list[str]:
    """Loads a checkpoint completely, averages where it holds both; nothing may be missing."""
    report = _load_detector(task, prefix)
    if report.missing:
        raise ConfigError(
            f"{prefix} lacks {len(report.missing)} of the model's weights, for example "
            f"{list(report.missing)[:3]}: use the settings it was trained with (--model_name, "
            "--preset, --hparams)"
        )
    return [f"evaluating {prefix}: {len(report.loaded)} tensors loaded"]


def export(task: MaskRcnnTask, folder: Path) -> None:
    """Writes the serving SavedModel."""
    export_saved_model(task, folder)


def write_evaluation(
    task: MaskRcnnTask,
    rows: np.ndarray | MaskedRows,
    metrics: Mapping[str, float],
    *,
    folder: Path,
    epoch: int,
) -> list[str]:
    """Writes detections.json, bbox.json, segm.json, metrics.json and, if asked, the test-dev file.

    Returns:
      What the log says: tables, csv lines, places. Without metrics only the places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    boxes, masks = rows if task.has_masks else (rows, None)
    found = task.evaluator.to_detections(boxes)
    files = {"bbox.json": found, "detections.json": found}
    if masks is not None:
        files["detections.json"] = with_masks(found, masks)
        files["segm.json"] = with_masks(found, masks, keep_boxes=False)
    for name, entries in files.items():
        write_detections_json(folder / name, entries, full_precision=True)
    (folder / "metrics.json").write_text(json.dumps({"epoch": epoch, **metrics}, indent=1))
    lines = []
    for prefix, title in (("", "boxes"), (MASK_PREFIX, "masks")):
        of_kind = _with_prefix(metrics, prefix)
        if of_kind:
            table = format_metrics_table(of_kind, title=f"epoch {epoch}, {title}")
            lines += [*table.splitlines(), f"csv format: {csv_line(epoch, of_kind)}"]
    lines.append(f"detections and metrics are in {folder}")
    if task.config.eval.testdev_dir:
        testdev = Path(task.config.eval.testdev_dir) / _TESTDEV_FILE
        entries = files["detections.json"]
        lines.append(f"submission file: {write_detections_json(testdev, entries)}")
    return lines


def _with_prefix(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Returns the metrics of boxes ('') or masks under COCO's names, {} where there are none."""
    of_kind = {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(MASK_PREFIX) == bool(prefix)
    }
    return of_kind if METRIC_NAMES[0] in of_kind else {}


def config_of_checkpoint(
    path: str, *, model_name: str, preset_name: str, hparams: str, batch_size: int = 8
) -> MaskRcnnConfig:
    """Returns the configuration for running a checkpoint; see `config_of_description`."""
    return config_of_description(
        checkpoint.read_metadata(checkpoint.find(path)),
        model_name=model_name,
        preset_name=preset_name,
        hparams=hparams,
        batch_size=batch_size,
    )


def config_of_description(
    stored: Mapping[str, Any],
    *,
    model_name: str,
    preset_name: str,
    hparams: str,
    batch_size: int = 8,
) -> MaskRcnnConfig:
    """Returns the configuration for evaluating a checkpoint; see `cli.config_of_description`.

    Args:
      stored: the checkpoint's description; {} where it has none: then model name and preset say
        what it is.
      model_name: as `--model_name`.
      preset_name: as `--preset`.
      hparams: as `--hparams`.
      batch_size: images per rank and step.
    """

    def base() -> MaskRcnnConfig:
        overrides = preset(preset_name, model_name=model_name)
        return override(base_config(model_name), overrides, source="preset")

    return cli.config_of_description(
        MaskRcnnConfig,
        stored,
        model_name=model_name,
        base=base,
        hparams=hparams,
        batch_size=batch_size,
    )
