"""Evaluates a checkpoint with COCO's metrics, each image once over any number of ranks.

  python eval.py --ckpt_path=RUN/ema_weights/emackpt-300 --val_file_pattern='DATA/val-*' \
      --val_json_file=DATA/annotations/instances_val2017.json
"""

from absl import flags

from efficientdet.settings import EfficientDetConfig
from engine import cli
from engine.config import ConfigError

flags.DEFINE_string(
    "model_name", "efficientdet-d0", "Model; the checkpoint's own description comes first."
)
flags.DEFINE_string(
    "preset", "", "Conventions of a reference for checkpoints without a description: nvidia."
)
flags.DEFINE_string("hparams", "", "Comma-separated key=value pairs, or a YAML file.")
flags.DEFINE_string("ckpt_path", "", "Checkpoint prefix, or a folder: then its newest checkpoint.")
flags.DEFINE_string("output_dir", "", "Folder for detections and metrics; '': CKPT-evaluation.")
flags.DEFINE_integer("batch_size", 8, "Images per rank and step.")
flags.DEFINE_integer(
    "only_this_epoch", 0, "Evaluate emackpt-N of this epoch in the folder ckpt_path; 0: the newest."
)
cli.define_flags([EfficientDetConfig], sections=("eval", "runtime", "data"))
FLAGS = flags.FLAGS


def main(argv: list[str]) -> int:
    """Evaluates; returns the exit code."""
    if len(argv) > 1:
        raise ConfigError(
            f"unexpected argument {argv[1]!r}: every setting is a flag, as in --batch_size=8"
        )
    if not FLAGS.ckpt_path:
        raise ConfigError(
            "--ckpt_path is required: a checkpoint prefix, or a folder that holds one"
        )
    from efficientdet import family
    from engine.run import run_evaluation

    path = FLAGS.ckpt_path
    if FLAGS.only_this_epoch:
        path = family.averaged_checkpoint(path, FLAGS.only_this_epoch)
    config = family.config_of_checkpoint(
        path,
        model_name=FLAGS.model_name,
        preset_name=FLAGS.preset,
        hparams=FLAGS.hparams,
        batch_size=FLAGS.batch_size,
    )
    return run_evaluation(config, family, ckpt_path=path, output_dir=FLAGS.output_dir)


if __name__ == "__main__":
    cli.run_app(main)
