"""EfficientDet as train.py and eval.py see it: making tasks, loading weights, writing results.

The functions are those of `engine.run.Family`. A checkpoint's own description (its configuration
and class map) decides the model when evaluating; flags only say where data and results are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from efficientdet import weights
from efficientdet.export import export_saved_model
from efficientdet.settings import (
    COMPARED_SECTIONS,
    EfficientDetConfig,
    base_config,
    preset,
    validate,
)
from efficientdet.task import EfficientDetTask
from engine import cli
from engine.config.fields import ConfigError, override
from engine.files import checkpoint
from engine.files.weight_files import weights_path
from engine.ranks import distributed
from object_detection.metrics.detection_rows import write_detections_json
from object_detection.metrics.report import csv_line, format_metrics_table
from object_detection.records.card import DataCard
from object_detection.records.card_builder import find_or_scan_card
from object_detection.records.class_map import class_map_of_run

__all__ = ["COMPARED_SECTIONS", "validate", "weights_path"]

_TESTDEV_FILE = "detections_test-dev2017_test_results.json"


def make_task(
    config: EfficientDetConfig,
    *,
    description: Mapping[str, Any],
    training: bool,
    batch_norm: Any,
    seed: int,
) -> EfficientDetTask:
    """Binds data and model; see `engine.run.Family`."""
    train_card = _card(config.data.training_file_pattern) if training else None
    eval_card = _card(config.eval.val_file_pattern)
    if train_card:
        train_card.require_boxes()
    class_map = class_map_of_run(
        train_card,
        eval_card,
        stored=description["task"]["class_map"] if description else None,
        class_ids=config.data.class_ids,
        num_classes=config.data.num_classes,
        label_map=config.data.label_map,
    )
    return EfficientDetTask(
        config,
        class_map,
        train_card=train_card,
        eval_card=eval_card,
        batch_norm=batch_norm,
        seed=seed,
    )


def _card(pattern: str) -> DataCard | None:
    """Returns the card of records; rank 0 reads, as records without a card are all read for it."""
    return distributed.on_main(lambda: find_or_scan_card(pattern)) if pattern else None


def describe(task: EfficientDetTask) -> dict[str, Any]:
    """The class map and the identity of the training data."""
    card = task.train_card
    return {
        "class_map": task.class_map.to_dict(),
        "data": {"fingerprint": card.fingerprint, "images": card.num_images},
    }


def load_initial_weights(config: EfficientDetConfig, task: EfficientDetTask) -> list[str]:
    """Loads `--backbone_init`, then `--pretrained_ckpt`; returns the tables of what was loaded."""
    lines: list[str] = []
    if config.train.backbone_init:
        report = weights.load_backbone(task.model, weights_path(config.train.backbone_init))
        lines += report.format_table().splitlines()
    if config.train.pretrained_ckpt:
        report = weights.load_detector(
            task.model, checkpoint.newest_or_path(config.train.pretrained_ckpt)
        )
        lines += report.format_table().splitlines()
    return lines


def load_weights(task: EfficientDetTask, prefix: str) -> list[str]:
    """Loads a checkpoint completely, averages where it holds both; nothing may be missing."""
    report = weights.load_detector(task.model, prefix)
    if report.missing:
        raise ConfigError(
            f"{prefix} lacks {len(report.missing)} of the model's weights, for example "
            f"{list(report.missing)[:3]}: use the settings it was trained with (--model_name, "
            "--preset, --hparams)"
        )
    return [f"evaluating {prefix}: {len(report.loaded)} tensors loaded"]


def export(task: EfficientDetTask, folder: Path) -> None:
    """Writes the serving SavedModel."""
    export_saved_model(task, folder)


def write_evaluation(
    task: EfficientDetTask,
    rows: np.ndarray,
    metrics: Mapping[str, float],
    *,
    folder: Path,
    epoch: int,
) -> list[str]:
    """Writes detections.json, metrics.json and, if asked, the test-dev file.

    Returns:
      What the log says: the table, the csv line, the places. Without metrics only the places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    detections = task.evaluator.to_detections(rows)
    write_detections_json(folder / "detections.json", detections, full_precision=True)
    (folder / "metrics.json").write_text(json.dumps({"epoch": epoch, **metrics}, indent=1))
    lines = []
    if metrics:
        lines += format_metrics_table(metrics, title=f"epoch {epoch}").splitlines()
        lines.append(f"csv format: {csv_line(epoch, metrics)}")
    lines.append(f"detections and metrics are in {folder}")
    if task.config.eval.testdev_dir:
        testdev = Path(task.config.eval.testdev_dir) / _TESTDEV_FILE
        lines.append(f"submission file: {write_detections_json(testdev, detections)}")
    return lines


def config_of_checkpoint(
    path: str, *, model_name: str, preset_name: str, hparams: str, batch_size: int = 8
) -> EfficientDetConfig:
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
) -> EfficientDetConfig:
    """Returns the configuration for evaluating or running a checkpoint.

    Args:
      stored: the checkpoint's description; {} where it has none: then model name and preset say
        what it is.
      model_name: as `--model_name`; must agree with the description if it was given.
      preset_name: as `--preset`.
      hparams: as `--hparams`; overrides either, as do flags.
      batch_size: images per rank and step.

    Raises:
      ConfigError: unknown names or keys, or the checkpoint is of another model.
    """
    return cli.config_of_description(
        EfficientDetConfig,
        stored,
        model_name=model_name,
        base=lambda: override(base_config(model_name), preset(preset_name), source="preset"),
        hparams=hparams,
        batch_size=batch_size,
    )
