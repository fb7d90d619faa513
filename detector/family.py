"""A family as the commands see it: making tasks, loading weights, exporting, writing results.

`DetectorFamily` answers what `engine.family.Family` asks, and what eval.py, infer.py and export.py
ask beside it. A checkpoint's own description (its configuration and class map) decides the model
when evaluating; flags only say where data and results are.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from absl import flags

from detector.task import DetectionTask
from detector.weight_loading import LoadReport, load_own
from engine.config.fields import ConfigError, flatten, from_dict, override, to_dict
from engine.config.recipe_yaml import literal
from engine.files import checkpoint
from engine.files.best import key_of
from engine.files.description import read_metadata
from engine.files.weight_files import weights_path
from engine.ranks import distributed
from engine.start import cli
from engine.task import MaskedRows
from object_detection.metrics.coco import METRIC_NAMES
from object_detection.metrics.detection_rows import write_detections_json
from object_detection.metrics.report import csv_line, format_metrics_table
from object_detection.metrics.set_scores import MASK_PREFIX
from object_detection.records.card import DataCard
from object_detection.records.card_builder import find_or_scan_card
from object_detection.records.class_map import ClassMap, class_map_of_run, coco_class_map
from object_detection.report.write import ReportOptions, about_evaluation, write_report
from object_detection.serve.saved_model import export_detector
from outside_data.files import expecting
from outside_data.whole_file import write_whole

_TESTDEV_FILE = "detections_test-dev2017_test_results.json"
# Sections that tell nothing of how a trained model detects.
_OF_TRAINING = {"data", "loss", "optim", "solver", "train", "eval", "runtime"}


class DetectorFamily:
    """Base of the families; a family's module holds one as `FAMILY`.

    Args:
      settings: the family's module of settings: `base_config`, `with_preset`, `COMPARED_SECTIONS`.
      config_class: of its configurations.
      task_class: of its tasks; takes (config, class_map) and the cards, batch_norm and seed.
    """

    def __init__(self, settings: ModuleType, config_class: type, task_class: type):
        self._settings, self._config_class, self._task_class = settings, config_class, task_class
        self.COMPARED_SECTIONS: tuple[str, ...] = settings.COMPARED_SECTIONS

    # ------------------------------------------------------------------ of a family

    def validate(self, config: Any) -> None:
        """Raises ConfigError for settings that cannot work together."""
        raise NotImplementedError

    def load_backbone(self, task: DetectionTask, path: str) -> LoadReport:
        """Loads the backbone's weights from a classifier or a detector; by default refuses."""
        name = task.config.model.name
        raise ConfigError(f"--backbone_init={path}: no weights of others are read for {name}")

    def load_detector(
        self, task: DetectionTask, path: str, *, channels: Sequence[int] | None = None
    ) -> LoadReport:
        """Loads all weights from a detector: by default from our checkpoints, of equal classes.

        Args:
          task: whose model is filled.
          path: of the weights.
          channels: for each class channel of the model that of the file, -1: it keeps its values;
            None: as the family knows of the file, else one to one.
        """
        if channels is not None and [*channels] != [*range(task.class_map.num_classes)]:
            raise ConfigError(
                f"{path} has other classes: of {task.config.model.name} only equal "
                "ones can be loaded"
            )
        return load_own(task.model, path)

    def check_training_data(self, config: Any, card: DataCard) -> None:
        """Raises ConfigError for records that the model cannot be trained on."""

    def settled_config(self, config: Any, description: Mapping[str, Any]) -> Any:
        """Fills in what only the weights of a run can tell, on all ranks alike.

        Args:
          config: of the run.
          description: of the checkpoint to continue or evaluate, {} for a new run.
        """
        return config

    def config_for_weights(self, config: Any, prefix: str) -> Any:
        """Fills in what weights without a description demand of the network."""
        return config

    def detection_files(
        self, task: DetectionTask, rows: np.ndarray | MaskedRows
    ) -> dict[str, list[dict[str, Any]]]:
        """Returns the entries of each file of detections; `detections.json` is one."""
        return {"detections.json": task.evaluator.to_detections(rows)}

    # ------------------------------------------------------------------ of all

    def make_task(
        self,
        config: Any,
        *,
        description: Mapping[str, Any],
        training: bool,
        batch_norm: Any,
        seed: int,
    ) -> DetectionTask:
        """Binds data and model; see `engine.family.Family`."""
        train_card = _card(config.data.training_file_pattern) if training else None
        eval_card = _card(config.eval.val_file_pattern)
        if train_card:
            train_card.require_boxes()
            self.check_training_data(config, train_card)
        class_map = class_map_of_run(
            train_card,
            eval_card,
            stored=_class_map(description).to_dict() if description else None,
            class_ids=config.data.class_ids,
            num_classes=config.data.num_classes,
            label_map=config.data.label_map,
        )
        with _building({} if training else description):
            task = self._task_class(
                self.settled_config(config, description),
                class_map,
                train_card=train_card,
                eval_card=eval_card,
                batch_norm=batch_norm,
                seed=seed,
            )
        if training and config.eval.val_json_file and config.eval.best_metric != "AP":
            key_of(config.eval.best_metric, dict.fromkeys(task.set_scores.metric_names()))
        return task

    def describe(self, task: DetectionTask) -> dict[str, Any]:
        """The class map and the identity of the training data."""
        card = task.train_card
        return {
            "class_map": task.class_map.to_dict(),
            "data": {"fingerprint": card.fingerprint, "images": card.num_images},
        }

    def load_initial_weights(self, config: Any, task: DetectionTask) -> list[str]:
        """Loads `--backbone_init`, then `--pretrained_ckpt`; returns tables of what was loaded."""
        backbone, detector = initial_weights(config)
        lines: list[str] = []
        if backbone:
            lines += self.load_backbone(task, backbone).format_table().splitlines()
        if detector:
            stored, channels = read_metadata(detector), None
            if stored:
                of_file = _class_map(stored)
                channels = task.class_map.channels_in(of_file)
            report = self.load_detector(task, detector, channels=channels)
            lines += report.format_table().splitlines()
            if channels is not None:
                lines.append(f"  {task.class_map.describe_channels(channels)}")
            elif not report.missing:
                lines.append(
                    "  class predictor: the file names no classes; by COCO's ids or in order"
                )
        return lines

    def load_weights(self, task: DetectionTask, prefix: str) -> list[str]:
        """Loads a checkpoint completely, averages where it holds both; nothing may be missing."""
        report = self.load_detector(task, prefix)
        if report.missing:
            raise ConfigError(
                f"{prefix} lacks {len(report.missing)} of the model's weights, for example "
                f"{list(report.missing)[:3]}: use the settings it was trained with (--model_name, "
                "--preset, --hparams)"
            )
        lines = [f"evaluating {prefix}: {len(report.loaded)} tensors loaded"]
        return [*lines, f"  {report.note}"] if report.note else lines

    def load_task(self, prefix: str, *, config: Any) -> DetectionTask:
        """Builds the model of a checkpoint with its weights.

        Args:
          prefix: of the checkpoint.
          config: as `config_of_description` gives it.

        Raises:
          ConfigError: the checkpoint lacks weights of the model, or demands another network than
            the configuration names.
        """
        stored = read_metadata(prefix)
        if stored:
            class_map = _class_map(stored)
            class_map.require_count(config.data.num_classes)
            with _building(stored):
                task = self._task_class(config, class_map)
        else:
            task = self.new_task(self.config_for_weights(config, prefix))
        self.load_weights(task, prefix)
        return task

    def new_task(self, config: Any, *, class_map: ClassMap | None = None) -> DetectionTask:
        """Builds a model with random weights, of COCO's classes unless others are given."""
        if class_map is None:
            data = config.data
            class_map = coco_class_map(class_ids=data.class_ids, num_classes=data.num_classes)
        return self._task_class(config, class_map)

    def with_input_size(self, config: Any, size: str) -> Any:
        """Returns the configuration with another network input, `N` or `WIDTHxHEIGHT` pixels."""
        config = override(config, {"model.image_size": literal(size)}, source="--image_size")
        self.validate(config)
        return config

    def export(self, task: DetectionTask, folder: str | Path) -> str:
        """Writes the serving SavedModel and returns what to tell; see `export_detector`."""
        return export_detector(
            task.detect_images,
            task.class_map,
            folder,
            variables=task.model.variables,
            check_size=task.network_sizes[0],
            mask_rule=task.mask_rule,
        )

    def write_evaluation(
        self,
        task: DetectionTask,
        rows: np.ndarray | MaskedRows,
        metrics: Mapping[str, float],
        *,
        folder: Path,
        epoch: int,
    ) -> list[str]:
        """Writes the files of detections, metrics.json and, if asked, the test-dev file.

        Returns:
          What the log says: tables, csv lines, places. Without metrics only the places.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files = self.detection_files(task, rows)
        for name, entries in files.items():
            write_detections_json(folder / name, entries, full_precision=True)
        most = task.config.eval.max_detections
        record = {"epoch": epoch, "max_detections": most, **metrics}
        write_whole(folder / "metrics.json", json.dumps(record, indent=1))
        lines, evaluated = [], task.config.eval.val_json_file
        for prefix, title in (("", "boxes"), (MASK_PREFIX, "masks")):
            of_kind = _with_prefix(metrics, prefix)
            if of_kind:
                title = f"{evaluated}, epoch {epoch}, {title}"
                table = format_metrics_table(of_kind, title=title, max_detections=most)
                lines += [*table.splitlines(), f"csv format: {csv_line(epoch, of_kind)}"]
        lines.append(f"detections and metrics are in {folder}")
        if task.config.eval.testdev_dir:
            testdev = Path(task.config.eval.testdev_dir) / _TESTDEV_FILE
            entries = files["detections.json"]
            lines.append(f"submission file: {write_detections_json(testdev, entries)}")
        if metrics and task.config.eval.report:
            lines.append(_report(task, files["detections.json"], metrics, folder, epoch=epoch))
        return lines

    def config_of_description(
        self,
        stored: Mapping[str, Any],
        *,
        model_name: str,
        preset_name: str,
        hparams: str,
        batch_size: int = 8,
    ) -> Any:
        """Returns the configuration for evaluating or running a checkpoint.

        Args:
          stored: the checkpoint's description; {} where it has none: then model name and preset
            say what it is.
          model_name: as `--model_name`; must agree with the description if it was given.
          preset_name: as `--preset`.
          hparams: as `--hparams`; overrides either, as do flags.
          batch_size: images per rank and step.

        Raises:
          ConfigError: unknown names or keys, or the checkpoint is of another model.
        """
        if stored:
            config = from_dict(self._config_class, stored["config"])
            is_given = "model_name" in flags.FLAGS and flags.FLAGS["model_name"].present
            if is_given and model_name != config.model.name:
                raise ConfigError(
                    f"--model_name={model_name}, but the checkpoint is {config.model.name}"
                )
        else:
            base = self._settings.base_config(model_name)
            config = self._settings.with_preset(base, preset_name)
        return cli.resolve_untrained(config, hparams=hparams, batch_size=batch_size)

    def overruled(self, stored: Mapping[str, Any], *, preset_name: str) -> list[str]:
        """Says where a checkpoint's own settings are others than those of `--preset`; [] nowhere.

        Raises:
          ConfigError: there is no such preset.
        """
        if not (stored and preset_name):
            return []
        config = from_dict(self._config_class, stored["config"])
        asked = flatten(to_dict(self._settings.with_preset(config, preset_name)))
        others = [
            f"{name} {value} and not {asked[name]}"
            for name, value in flatten(to_dict(config)).items()
            if value != asked[name] and name.split(".")[0] not in _OF_TRAINING
        ]
        if not others:
            return []
        return [
            f"--preset={preset_name} has no effect, the checkpoint says what it was trained with: "
            f"{', '.join(sorted(others))}; --hparams changes that"
        ]


def _file_of(description: Mapping[str, Any]) -> Path:
    return getattr(description, "path", Path("the stored description"))


def _building(description: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Names the file whose description may be of a model that cannot be built; {}: none is."""
    what = "the description of a model that can be built on this machine"
    return expecting(_file_of(description), what) if description else contextlib.nullcontext()


def _class_map(stored: Mapping[str, Any]) -> ClassMap:
    with expecting(_file_of(stored), "task.class_map to hold num_classes and categories"):
        return ClassMap.from_dict(stored["task"]["class_map"])


def initial_weights(config: Any) -> tuple[str, str]:
    """Returns the paths of backbone and detector weights that a run starts from, '' for none."""
    train = config.train
    backbone = weights_path(train.backbone_init) if train.backbone_init else ""
    detector = checkpoint.newest_or_path(train.pretrained_ckpt) if train.pretrained_ckpt else ""
    return backbone, detector


def _card(pattern: str) -> DataCard | None:
    """Returns the card of records; rank 0 reads, as records without a card are all read for it."""
    return distributed.on_main(lambda: find_or_scan_card(pattern)) if pattern else None


def _report(
    task: DetectionTask,
    detections: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
    folder: Path,
    *,
    epoch: int,
) -> str:
    """Writes the report of an evaluation; returns what the log says of it."""
    config = task.config
    about = about_evaluation(
        task.set_scores,
        model=config.model.name,
        epoch=epoch,
        settings=to_dict(config),
        train_card=task.train_card,
        seconds=task.evaluation_seconds,
    )
    options = ReportOptions(
        config.eval.report_score, config.eval.report_iou, config.eval.report_images
    )
    try:
        path = write_report(
            folder, about, detections, metrics, options=options, truth=task.evaluator.truth
        )
    except Exception as error:  # no page is worth the training before it
        return f"WARNING: no report was written: {error!r}"
    return f"report: {path}"


def _with_prefix(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Returns the metrics of boxes ('') or masks under COCO's names, {} where there are none."""
    of_kind = {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(MASK_PREFIX) == bool(prefix)
    }
    return of_kind if METRIC_NAMES[0] in of_kind else {}
