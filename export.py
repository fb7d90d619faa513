"""Exports a checkpoint as a SavedModel with all processing inside, or for another runtime.

The SavedModel's interface stands in object_detection/serve/saved_model.py, that of the others in
object_detection/serve/portable.py.

python export.py --model_dir=RUN --saved_model_dir=OUT
python export.py --model_dir=RUN --saved_model_dir=OUT --format=tflite --precision=float16
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from absl import flags

import families
from detector.export_target import PRECISIONS, STAGES, Target, check_target
from engine.config.fields import ConfigError
from engine.start import cli

if TYPE_CHECKING:
    import numpy as np

families.define_checkpoint_flags()
flags.DEFINE_string("saved_model_dir", "", "Folder to write; replaced if it is there.")
flags.DEFINE_alias("output_dir", "saved_model_dir")
flags.DEFINE_enum(
    "format",
    "savedmodel",
    list(PRECISIONS),
    "What is written; tensorrt-plan-script is onnx with a script that builds a plan of it.",
)
flags.DEFINE_enum(
    "stage",
    "detections",
    STAGES,
    "Outputs: of the heads, all boxes decoded, or after suppression.",
)
flags.DEFINE_enum(
    "precision", "float32", ["float32", "float16", "int8"], "Of the file's weights and sums."
)
flags.DEFINE_integer(
    "batch_size",
    1,
    "Images of one call; the SavedModel of stage detections takes any number.",
    lower_bound=1,
)
flags.DEFINE_string(
    "image_size", "", "Network input, N or WIDTHxHEIGHT pixels; '': the checkpoint's."
)
flags.DEFINE_string(
    "images",
    "",
    "Image file, folder or glob: photographs on which a file is compared with the checkpoint, and "
    "of which int8 takes its ranges; '': those of scikit-image, with which the SavedModel of stage "
    "detections is compared in any case.",
)
flags.DEFINE_integer("num_images", 16, "Most images of --images that are used.", lower_bound=1)
FLAGS = flags.FLAGS


def intent() -> str:
    """Checks the flags; returns what is about to be done."""
    for name in ("model_dir", "saved_model_dir"):
        if not FLAGS[name].value:
            raise ConfigError(f"--{name} is required")
    target = wanted()
    check_target(target)
    return f"exporting {FLAGS.model_dir} as {target.format} ({target.stage}, {target.precision})"


def main() -> int:
    """Writes the export; returns the exit code."""
    target = wanted()
    task = families.flagged_task(input_size=FLAGS.image_size)
    check_target(target, stages=task.stages, model_name=task.config.model.name)
    print("building the graph, writing it, and comparing it with the checkpoint", flush=True)
    if target.is_whole_detector:
        family = families.load(task.config.model.name)
        print(family.export(task, Path(FLAGS.saved_model_dir)))
    else:
        from detector.portable import export_portable

        print(export_portable(task, FLAGS.saved_model_dir, target, photographs()))
    print(f"try it: python {shlex.quote(f'{FLAGS.saved_model_dir}/run.py')} PHOTO")
    return 0


def wanted() -> Target:
    """Returns what the flags ask for."""
    return Target(FLAGS.format, FLAGS.stage, FLAGS.precision, FLAGS.batch_size)


def photographs() -> list[np.ndarray]:
    """Returns the images of --images, or those that come with scikit-image."""
    from object_detection.serve.image_files import find_images, known_photographs, read_image

    paths = find_images(FLAGS.images) if FLAGS.images else known_photographs()
    return [read_image(path).pixels for path in paths[: FLAGS.num_images]]


if __name__ == "__main__":
    cli.run_app(main, intent=intent)
