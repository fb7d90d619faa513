"""Trains a detector. Command line only: parse, build the configuration, call the run.

python train.py --model_name=efficientdet-d0 --model_dir=RUN
--training_file_pattern='DATA/train-*' --val_file_pattern='DATA/val-*'
--val_json_file=DATA/annotations/instances_val2017.json
"""

from absl import flags

from efficientdet.settings import EfficientDetConfig, base_config, preset
from engine import cli

flags.DEFINE_string(
    "model_name", "efficientdet-d0", "Model, for example efficientdet-d0 or efficientdet-lite0."
)
flags.DEFINE_string(
    "preset", "", "Conventions of a reference: nvidia; '': ours (docs/departures.md)."
)
flags.DEFINE_string("recipe", "", "YAML file of settings that differ from the defaults.")
flags.DEFINE_string(
    "hparams", "", "Comma-separated key=value pairs, or a YAML file; overrides the recipe."
)
cli.define_flags([EfficientDetConfig])
FLAGS = flags.FLAGS


def resolve_config() -> EfficientDetConfig:
    """Returns the configuration that the command line asks for."""
    return cli.resolve(
        base_config(FLAGS.model_name),
        preset=preset(FLAGS.preset),
        recipe=FLAGS.recipe,
        hparams=FLAGS.hparams,
    )


def main(argv: list[str]) -> int:
    """Trains; returns the exit code."""
    cli.refuse_arguments(argv)
    config = resolve_config()
    from efficientdet import family
    from engine.run import run_training

    return run_training(config, family)


if __name__ == "__main__":
    cli.run_app(main)
