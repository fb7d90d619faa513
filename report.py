"""Makes the report of an evaluation again: another score, another IoU, more images.

python report.py --evaluation=RUN/evaluation --score=0.3 --num_images=40
"""

from __future__ import annotations

from pathlib import Path

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from absl import flags

from engine.config.fields import ConfigError
from engine.start import cli

flags.DEFINE_string("evaluation", "", "Folder that eval.py or a training wrote.")
flags.DEFINE_float(
    "score", 0.0, "Least score of detections counted and drawn; 0: where F1 is largest."
)
flags.DEFINE_float("iou", 0.5, "Least IoU of a detection with the object it found.")
flags.DEFINE_integer("num_images", 16, "Most images drawn, the worst first.")
flags.DEFINE_string("images", "", "Folder of the images; '': they are taken from the records.")
flags.DEFINE_string("annotations", "", "COCO annotations; '': where they were at the evaluation.")
flags.DEFINE_string("records", "", "Glob of the records; '': where they were at the evaluation.")
FLAGS = flags.FLAGS


def main() -> int:
    """Writes the report; returns the exit code."""
    if not FLAGS.evaluation:
        raise ConfigError("--evaluation is required: a folder that eval.py or a training wrote")
    from object_detection.report.write import ReportOptions, read_evaluation, write_report

    folder = Path(FLAGS.evaluation)
    options = ReportOptions(FLAGS.score, FLAGS.iou, FLAGS.num_images, FLAGS.images)
    about, detections, metrics = read_evaluation(
        folder, annotations=FLAGS.annotations, records=FLAGS.records
    )
    print(f"report of {len(detections)} detections in {folder}", flush=True)
    print(f"report: {write_report(folder, about, detections, metrics, options=options)}")
    return 0


if __name__ == "__main__":
    cli.run_app(main)
