"""Trains a detector. Command line only: parse, build the configuration, call the run.

python train.py --model_name=efficientdet-d0 --model_dir=RUN
--training_file_pattern='DATA/train-*' --val_file_pattern='DATA/val-*'
--val_json_file=DATA/annotations/instances_val2017.json

or --data=DIR in place of the last three: a folder with COCO, YOLO, VOC, ... annotations.

Mask R-CNN: --model_name=maskrcnn-r50-fpn, with records that hold masks; or a configuration of
NVIDIA's PyTorch program: --config_file=FILE.yaml --model_dir=RUN --data_dir=DATA KEY VALUE ...
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from absl import flags

import families
from dataset import data_flags
from detector import finetune
from engine.files import zoo
from engine.start import cli

flags.DEFINE_string(
    "model_name", "efficientdet-d0", "Model, for example efficientdet-d0 or maskrcnn-r50-fpn."
)
flags.DEFINE_bool("list_models", False, "Print the names of all models and end.")
flags.DEFINE_bool("list_zoo", False, "Print the weights that zoo:NAME fetches and end.")
flags.DEFINE_string(
    "preset",
    "",
    "Conventions of a reference: nvidia for EfficientDet, nvidia_tf2 or nvidia_pytorch for Mask "
    "R-CNN; '': ours (docs/departures.md).",
)
flags.DEFINE_string(
    "recipe",
    "",
    "YAML file of settings that differ from the defaults; or finetune: settings for training from "
    "weights, derived from the length of the run and the size of the set (docs/training.md). "
    "EfficientDet with --data and weights takes it by itself unless another is named; '': none.",
)
flags.DEFINE_string(
    "hparams", "", "Comma-separated key=value pairs, or a YAML file; overrides the recipe."
)
data_flags.define(
    replaces="--training_file_pattern, --val_file_pattern and --val_json_file",
    records="MODEL_DIR-data",
    split="val, else test",
)
families.define_flags(training=True)
FLAGS = flags.FLAGS


def resolve_request(words: list[str]) -> families.Request:
    """Returns what the command line asks for."""
    from engine.config.settings import TrainConfig
    from engine.start import start_checks  # brings TensorFlow, which --help does not wait for

    resumed = TrainConfig(
        model_dir=FLAGS.model_dir or "", allow_rank_change=bool(FLAGS.allow_rank_change)
    )
    if FLAGS.batch_size == 0:  # auto
        FLAGS.batch_size = found_batch_size(resumed)
    recipe = families.chosen_recipe(FLAGS)
    asked = functools.partial(
        families.training_request,
        words,
        preset_name=FLAGS.preset,
        hparams=FLAGS.hparams,
        num_ranks=start_checks.ranks_meant(resumed),
    )
    early = None
    if FLAGS.data and not FLAGS.config_file:
        # What is wrong with the settings is said before a conversion that may take an hour. The
        # recipe for fine-tuning needs the records.
        is_fine_tuned = recipe == finetune.NAME
        early = asked(recipe="" if is_fine_tuned else recipe).config
        if is_fine_tuned:
            finetune.require_weights(early)
        families.load(early.model.name).validate(early)
    notes = data_flags.use_for_training(early)
    if recipe and not FLAGS["recipe"].present:
        notes.append(f"data and weights are given: --recipe={recipe}; --recipe= turns it off")
    request = asked(recipe=recipe)
    notes += families.data_notes(request.config)
    return dataclasses.replace(request, notes=(*notes, *request.notes))


def found_batch_size(resumed: Any) -> int:
    """Returns the batch of a run that goes on, else the largest that fits: --batch_size=auto."""
    from engine.config.fields import ConfigError
    from engine.files import checkpoint
    from engine.files.description import read_description
    from engine.start import batch_size, start_checks

    if not resumed.model_dir:  # not after minutes of trials
        raise ConfigError("--model_dir is required")
    saved = checkpoint.newest_resumable(resumed.model_dir)
    if saved:
        return read_description(saved)["config"]["train"]["batch_size"]
    records = FLAGS.data_records or f"{resumed.model_dir.rstrip('/')}-data"
    return batch_size.find(
        sys.argv,
        records=records if FLAGS.data else "",
        num_ranks=start_checks.ranks_meant(resumed),
    )


def main(words: list[str]) -> int:
    """Trains; returns the exit code."""
    if FLAGS.list_models:
        cli.show("\n".join(families.model_lines()))
        return 0
    if FLAGS.list_zoo:
        cli.show("\n".join(zoo.lines()))
        return 0
    request = resolve_request(words)
    config = request.config
    family = families.load(config.model.name)
    from engine.run import run_training

    code = run_training(config, family, notes=request.notes, conclude=request.conclude)
    # The first set was evaluated while training.
    others = dict(list(request.test_sets.items())[1:])
    if code == 0 and others and not (config.train.skip_test or config.train.benchmark):
        evaluate_others(request, others)
    return code


def evaluate_others(request: families.Request, sets: dict[str, dict]) -> None:
    """Evaluates the end of a run on further data sets, one by one."""
    from engine.files import checkpoint
    from engine.run_evaluation import evaluate_checkpoint

    folder, name = request.config.train.model_dir, request.config.model.name
    batch_size = request.config.eval.eval_batch_size
    family = families.load(name)
    evaluate_checkpoint(
        lambda stored: (
            family,
            family.config_of_description(
                stored, model_name=name, preset_name="", hparams="", batch_size=batch_size
            ),
        ),
        find_checkpoint=lambda: checkpoint.find(folder, which="last"),
        output_dir=str(Path(folder) / "evaluation"),
        sets=sets,
        conclude=request.conclude,
    )


if __name__ == "__main__":
    cli.run_app(main, takes_words=True)
