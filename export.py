"""Exports a checkpoint as a SavedModel with pre- and post-processing inside.

Its interface stands in object_detection/serve/saved_model.py.

python export.py --model_dir=RUN --saved_model_dir=OUT
"""

from pathlib import Path

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from absl import flags

import families
from engine.config.fields import ConfigError
from engine.start import cli

flags.DEFINE_string("model_dir", "", "Checkpoint prefix, or the folder of a run.")
flags.DEFINE_alias("ckpt_path", "model_dir")
flags.DEFINE_string("saved_model_dir", "", "Folder to write; replaced if it is there.")
flags.DEFINE_enum("which", "best", ["best", "last"], "Which checkpoint of a run's folder.")
flags.DEFINE_string("model_name", "efficientdet-d0", "Model of a checkpoint without a description.")
flags.DEFINE_string("preset", "", "Conventions of a checkpoint without a description.")
flags.DEFINE_string("hparams", "", "Comma-separated key=value pairs, or a YAML file.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> int:
    """Writes the export; returns the exit code."""
    cli.refuse_arguments(argv)
    for name in ("model_dir", "saved_model_dir"):
        if not FLAGS[name].value:
            raise ConfigError(f"--{name} is required")
    print(f"exporting {FLAGS.model_dir}: starting TensorFlow", flush=True)
    task = families.load_task(
        FLAGS.model_dir,
        which=FLAGS.which,
        model_name=FLAGS.model_name,
        preset_name=FLAGS.preset,
        hparams=FLAGS.hparams,
    )
    print("building the graph, writing it, and comparing it with the checkpoint", flush=True)
    families.load(task.config.model.name).export(task, Path(FLAGS.saved_model_dir))
    print(f"exported to {FLAGS.saved_model_dir}; checked against the checkpoint")
    return 0


if __name__ == "__main__":
    cli.run_app(main)
