"""Makes the report of an evaluation again: another score, another IoU, more images; compares runs.

python report.py --evaluation=RUN/evaluation --score=0.3 --num_images=40
python report.py --runs='runs/lr-*'
"""

from __future__ import annotations

from pathlib import Path

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from absl import flags

from engine.config.fields import ConfigError
from engine.start import cli
from path_names.patterns import match, split_patterns

flags.DEFINE_string("evaluation", "", "Folder that eval.py or a training wrote.")
flags.DEFINE_float(
    "score", 0.0, "Least score of detections counted and drawn; 0: where F1 is largest."
)
flags.DEFINE_float("iou", 0.5, "Least IoU of a detection with the object it found.")
flags.DEFINE_integer("num_images", 16, "Most images drawn, the worst first.")
flags.DEFINE_string("images", "", "Folder of the images; '': they are taken from the records.")
flags.DEFINE_string("annotations", "", "COCO annotations; '': where they were at the evaluation.")
flags.DEFINE_string("records", "", "Glob of the records; '': where they were at the evaluation.")
flags.DEFINE_string(
    "runs", "", "Folders of runs, or patterns: prints which is best, and how their settings differ."
)
FLAGS = flags.FLAGS


def main() -> int:
    """Writes the report; returns the exit code."""
    if FLAGS.runs:
        from detector.compare_runs import compare_runs

        print(compare_runs([Path(p) for part in split_patterns(FLAGS.runs) for p in match(part)]))
        return 0
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
