"""Trains a detector. Command line only: parse, build the configuration, call the run.

python train.py --model_name=efficientdet-d0 --model_dir=RUN
--training_file_pattern='DATA/train-*' --val_file_pattern='DATA/val-*'
--val_json_file=DATA/annotations/instances_val2017.json

Mask R-CNN: --model_name=maskrcnn-r50-fpn, with records that hold masks.
"""

from __future__ import annotations

from typing import Any

from absl import flags

import families
from engine import cli

flags.DEFINE_string(
    "model_name", "efficientdet-d0", "Model, for example efficientdet-d0 or maskrcnn-r50-fpn."
)
flags.DEFINE_string(
    "preset",
    "",
    "Conventions of a reference: nvidia for EfficientDet, nvidia_tf2 or nvidia_pytorch for Mask "
    "R-CNN; '': ours (docs/departures.md).",
)
flags.DEFINE_string("recipe", "", "YAML file of settings that differ from the defaults.")
flags.DEFINE_string(
    "hparams", "", "Comma-separated key=value pairs, or a YAML file; overrides the recipe."
)
cli.define_flags(families.CONFIG_CLASSES)
FLAGS = flags.FLAGS


def resolve_config() -> Any:
    """Returns the configuration that the command line asks for."""
    return cli.resolve(
        families.base_config(FLAGS.model_name),
        preset=families.preset(FLAGS.preset, model_name=FLAGS.model_name),
        recipe=FLAGS.recipe,
        hparams=FLAGS.hparams,
    )


def main(argv: list[str]) -> int:
    """Trains; returns the exit code."""
    cli.refuse_arguments(argv)
    config = resolve_config()
    family = families.load(config.model.name)
    from engine.run import run_training

    return run_training(config, family)


if __name__ == "__main__":
    cli.run_app(main)
