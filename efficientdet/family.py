"""EfficientDet as train.py and eval.py see it: making tasks, loading weights, writing results.

The functions are those of `engine.run.Family`. A newcomer's trap: a checkpoint's own description (its
configuration and class map) decides the model when evaluating; flags only say where data and results are.
"""

import importlib.metadata
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
from engine import checkpoint, cli
from engine.config import ConfigError, from_dict, override
from engine.hparams import parse_hparams, read_yaml
from object_detection.class_map import ClassMap, make_class_map
from object_detection.data.card import DataCard
from object_detection.data.card_builder import find_or_scan_card
from object_detection.metrics.detection_rows import write_detections_json
from object_detection.metrics.report import csv_line, format_metrics_table

__all__ = ["COMPARED_SECTIONS", "validate"]


def make_task(
    config: EfficientDetConfig,
    *,
    description: Mapping[str, Any],
    training: bool,
    batch_norm: Any,
    seed: int,
) -> EfficientDetTask:
    """Binds data and model; see `engine.run.Family`."""
    train_card = find_or_scan_card(config.data.training_file_pattern) if training else None
    eval_card = (
        find_or_scan_card(config.eval.val_file_pattern) if config.eval.val_file_pattern else None
    )
    if train_card:
        train_card.require_boxes()
    if description:
        class_map = ClassMap.from_dict(description["task"]["class_map"])
    else:
        names = read_yaml(config.data.label_map) if config.data.label_map else None
        class_map = make_class_map(
            train_card or eval_card,
            class_ids=config.data.class_ids,
            num_classes=config.data.num_classes,
            names=names,
        )
    return EfficientDetTask(
        config,
        class_map,
        train_card=train_card,
        eval_card=eval_card,
        batch_norm=batch_norm,
        seed=seed,
    )


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
        report = weights.load_detector(task.model, config.train.pretrained_ckpt)
        lines += report.format_table().splitlines()
    return lines


def weights_path(text: str) -> str:
    """Returns the file that `--backbone_init` names; `pip:NAME` is the weight file an installed package carries.

    Raises:
      FileNotFoundError: the package is not installed or holds no weight file.
    """
    if not text.startswith("pip:"):
        return text
    package = text.removeprefix("pip:")
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"--backbone_init={text}: install it with pip install {package}"
        ) from error
    found = [f for f in files if f.suffix in (".pth", ".pt", ".h5")]
    if not found:
        raise FileNotFoundError(
            f"--backbone_init={text}: the package holds no .pth, .pt or .h5 file"
        )
    return str(found[0].locate())


def load_weights(task: EfficientDetTask, prefix: str) -> list[str]:
    """Loads a checkpoint completely, averaged weights where it holds both; nothing may be missing."""
    report = weights.load_detector(task.model, prefix)
    if report.missing:
        raise ConfigError(
            f"{prefix} lacks {len(report.missing)} of the model's weights, for example {list(report.missing)[:3]}: "
            "use the settings it was trained with (--model_name, --preset, --hparams)"
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
    """Writes detections.json, metrics.json and, if asked, the test-dev file; returns the tables for the log."""
    folder.mkdir(parents=True, exist_ok=True)
    detections = task.evaluator.to_detections(rows)
    write_detections_json(folder / "detections.json", detections, full_precision=True)
    (folder / "metrics.json").write_text(json.dumps({"epoch": epoch, **metrics}, indent=1))
    testdev = task.config.eval.testdev_dir
    if testdev:
        Path(testdev).mkdir(parents=True, exist_ok=True)
        write_detections_json(
            Path(testdev) / "detections_test-dev2017_test_results.json", detections
        )
    table = format_metrics_table(metrics, title=f"epoch {epoch}").splitlines()
    return [
        *table,
        f"csv format: {csv_line(epoch, metrics)}",
        f"detections and metrics are in {folder}",
    ]


def config_of_checkpoint(
    path: str, *, model_name: str, preset_name: str, hparams: str, batch_size: int = 8
) -> EfficientDetConfig:
    """Returns the configuration for evaluating or running a checkpoint.

    The stored one is used where the checkpoint has it; otherwise model name and preset say what it is.
    """
    stored = checkpoint.read_metadata(checkpoint.find(path))
    if stored:
        config = from_dict(EfficientDetConfig, stored["config"])
    else:
        config = override(base_config(model_name), preset(preset_name), source="preset")
    config = override(config, parse_hparams(hparams), source="--hparams")
    given = cli.given_flags(EfficientDetConfig)
    given.pop("train.batch_size", None)
    return override(config, {**given, "eval.eval_batch_size": batch_size}, source="flag")


def averaged_checkpoint(folder: str, epoch: int) -> str:
    """Returns the averaged checkpoint of an epoch in a run's folder.

    Raises:
      FileNotFoundError: it is not there; lists those that are.
    """
    for base in (Path(folder) / "ema_weights", Path(folder)):
        if checkpoint.exists(base / f"emackpt-{epoch:02d}"):
            return str(base / f"emackpt-{epoch:02d}")
    found = [Path(p).name for p in checkpoint.numbered(Path(folder) / "ema_weights", "emackpt-")]
    raise FileNotFoundError(
        f"no emackpt-{epoch:02d} in {folder}; there are: {', '.join(found) or 'none'}"
    )
