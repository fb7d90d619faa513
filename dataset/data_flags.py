"""The flags of train.py and eval.py that name a data folder in place of records.

The folder is converted once, and the flags of the records are set as if they had been given.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

import families
from dataset import commands
from engine.config.fields import ConfigError
from engine.ranks import machine

# The flags belong to the program that asks for them: so its --help lists them.
flags.disclaim_key_flags()

FLAGS = flags.FLAGS


def define(*, replaces: str, records: str, split: str) -> None:
    """Defines --data, --data_split, --data_records, --on_data_error and those of pictures.

    Args:
      replaces: the flags in whose place --data is.
      records: where the records go by default, for --help.
      split: which split is evaluated by default, for --help.
    """
    flags.DEFINE_string(
        "data",
        "",
        "Data folder with images and annotations in any known format (docs/data.md): converted "
        f"once, in place of {replaces}.",
    )
    flags.DEFINE_string(
        "data_records", "", f"Folder of the records that --data makes; '': {records}."
    )
    flags.DEFINE_string(
        "data_split", "", f"Split of --data to evaluate on; '': {split}, or the only one."
    )
    flags.DEFINE_enum(
        "on_data_error",
        "stop",
        ["stop", "report"],
        "What --data does where the check of the data finds hopeless boxes (docs/data.md).",
    )
    commands.define_picture_flags()


def use_for_training(config: Any) -> list[str]:
    """Converts the folder of --data, unless that is done, and sets the flags of its records.

    Args:
      config: of the run, whose network and limits objects are held against; None: not known.

    Returns:
      Lines for the log; none without --data.

    Raises:
      ConfigError: records are named as well, or no place for them.
      ValueError, OSError: the data cannot be converted; says why.
    """
    if not FLAGS.data:
        return []
    from object_detection.convert.prepare import FOR_CHOICES, prepare_records

    _refuse_records("training_file_pattern", "val_file_pattern", "val_json_file")
    if FLAGS.model_dir and os.path.realpath(FLAGS.model_dir) == os.path.realpath(FLAGS.data):
        raise ConfigError(
            f"--model_dir={FLAGS.model_dir} is the data folder itself: the run would be written "
            "among the data; choose another"
        )
    notes: list[str] = []
    # Without a configuration there is the PyTorch program's file, for Mask R-CNN.
    prepared = prepare_records(
        FLAGS.data,
        _folder(FLAGS.model_dir or "", "--model_dir"),
        with_masks=getattr(config.model, "include_mask", False) if config else True,
        eval_split=FLAGS.data_split,
        eval_names=FOR_CHOICES,
        pictures=commands.picture_rules(),
        num_workers=machine.available_cores(),
        layout=families.anchor_layout(config.model) if config else None,
        on_data_error=FLAGS.on_data_error,
        report=notes.append,
        **_limits(config),
    )
    FLAGS["training_file_pattern"].parse(prepared.train_pattern)
    _evaluate_on(prepared)
    return notes


def use_for_evaluation(check: Callable[[], object]) -> list[str]:
    """Converts a split of the folder of --data; returns, raises: see `use_for_training`.

    `check` is called before a conversion, which may take an hour.
    """
    if not FLAGS.data:
        return []
    from object_detection.convert.prepare import prepare_records

    _refuse_records("val_file_pattern", "val_json_file")
    notes: list[str] = []
    weights = "" if FLAGS.ckpt_path.startswith("zoo:") else FLAGS.ckpt_path.rstrip("/")
    beside = FLAGS.output_dir or (weights and f"{weights}-{Path(FLAGS.data).absolute().name}")
    folder = _folder(beside, "--output_dir")
    check()
    prepared = prepare_records(
        FLAGS.data,
        folder,
        only_eval=True,
        eval_split=FLAGS.data_split,
        pictures=commands.picture_rules(),
        num_workers=machine.available_cores(),
        on_data_error=FLAGS.on_data_error,
        report=notes.append,
        **_limits(None),
    )
    _evaluate_on(prepared)
    return notes


def _limits(config: Any) -> dict[str, int]:
    """Returns how many objects of an image are trained on and scored, where that is known."""
    if config is not None:
        return {
            "max_instances": config.data.max_instances_per_image,
            "max_detections": config.eval.max_detections,
        }
    flagged = {"max_instances": "max_instances_per_image", "max_detections": "max_detections"}
    return {limit: FLAGS[name].value for limit, name in flagged.items() if FLAGS[name].present}


def _folder(beside: str, flag: str) -> str:
    """Returns the folder of the records."""
    if not (FLAGS.data_records or beside):
        raise ConfigError(f"--data needs {flag}, beside which the records go, or --data_records")
    return FLAGS.data_records or f"{beside.rstrip('/')}-data"


def _refuse_records(*names: str) -> None:
    given = [name for name in names if FLAGS[name].present]
    if given:
        raise ConfigError(
            f"--data={FLAGS.data} makes the records, but --{given[0]} names some: drop one"
        )


def _evaluate_on(prepared: Any) -> None:
    FLAGS["val_file_pattern"].parse(prepared.eval_pattern)
    FLAGS["val_json_file"].parse(str(prepared.eval_json))
