"""Evaluates a checkpoint with COCO's metrics, each image once over any number of ranks.

python eval.py --ckpt_path=RUN/ema_weights/emackpt-300 --val_file_pattern='DATA/val-*'
--val_json_file=DATA/annotations/instances_val2017.json

or --data=DIR in place of the last two: a folder with COCO, YOLO, VOC, ... annotations.

Mask R-CNN, sets and settings of testing from a YAML file of NVIDIA's PyTorch program:
python eval.py --config_file=FILE.yaml --ckpt_path=RUN --data_dir=DATA KEY VALUE ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ctrl_c  # noqa: F401  (before what takes seconds to import)

from absl import flags

import families
from dataset import data_flags
from engine.config.fields import ConfigError, override
from engine.start import cli

if TYPE_CHECKING:
    from detector.family import DetectorFamily

families.define_checkpoint_flags()
flags.DEFINE_string("output_dir", "", "Folder for detections and metrics; '': CKPT-evaluation.")
flags.DEFINE_integer("batch_size", 8, "Images per rank and step.")
flags.DEFINE_bool("skip_eval", False, "Write the detections and compute no metrics.")
flags.DEFINE_integer(
    "only_this_epoch",
    0,
    "Evaluate emackpt-N of this epoch in the folder ckpt_path; 0: as of which.",
)
cli.define_flags(
    families.CONFIG_CLASSES,
    only=(
        *("val_file_pattern", "val_json_file", "eval_samples", "testdev_dir", "coco_scorer"),
        "max_detections",
        *("report", "report_score", "report_iou", "report_images"),
        *("class_ids", "label_map", "max_instances_per_image", "on_overflow", "on_bad_record"),
        *("max_bad_records", "canvas_size", "resize_on", "input_threads", "prefetch_batches"),
        *("amp", "precision", "use_xla", "set_num_threads", "enable_map_parallelization"),
        *("heartbeat_seconds", "compile_seconds", "evaluation_seconds"),
    ),
)
families.define_flags(training=False)
data_flags.define(
    replaces="--val_file_pattern and --val_json_file",
    records="OUTPUT_DIR-data, else CKPT_PATH-DATA-data",
    split="test, else val",
)
FLAGS = flags.FLAGS


def main(words: list[str]) -> int:
    """Evaluates; returns the exit code."""
    from engine.files import checkpoint
    from engine.ranks import distributed
    from engine.run_evaluation import evaluate_checkpoint
    from engine.start.process import join_ranks

    def require_checkpoint() -> None:
        is_named = FLAGS.ckpt_path and not FLAGS.only_this_epoch
        if is_named and distributed.launched_size() == 1:
            checkpoint.find_any([FLAGS.ckpt_path], which=FLAGS.which)

    of_data = data_flags.use_for_evaluation(require_checkpoint)
    request = families.evaluation_request(
        words,
        preset_name=FLAGS.preset,
        batch_size=FLAGS.batch_size if FLAGS["batch_size"].present else None,
        num_ranks=distributed.launched_size(),
    )
    notes = [*of_data, *request.notes]
    places = [FLAGS.ckpt_path] if FLAGS.ckpt_path else request.checkpoint_places()
    if not places:
        raise ConfigError(
            "--ckpt_path is required: a checkpoint prefix, or a folder that holds one"
        )

    def find_checkpoint() -> str:
        if FLAGS.only_this_epoch:
            return checkpoint.averaged(places[0], FLAGS.only_this_epoch)
        # The PyTorch reference evaluates the newest of its OUTPUT_DIR.
        which = FLAGS.which if FLAGS.ckpt_path or FLAGS["which"].present else "last"
        return checkpoint.find_any(places, which=which)

    def configure(stored: Mapping[str, Any]) -> tuple[DetectorFamily, Any]:
        described = request.description(stored)
        name = described["config"]["model"]["name"] if described else FLAGS.model_name
        families.refuse_references(name)
        family = families.load(name)
        warnings = family.overruled(described, preset_name=FLAGS.preset)
        notes.extend(f"WARNING {warning}" for warning in warnings)
        config = family.config_of_description(
            described,
            model_name=FLAGS.model_name,
            preset_name=FLAGS.preset,
            hparams=FLAGS.hparams,
            batch_size=request.config.eval.eval_batch_size if request.config else FLAGS.batch_size,
        )
        more = {"eval.skip_eval": FLAGS.skip_eval}
        if not stored:  # weights of others, which demand conventions of their own
            more["train.pretrained_ckpt"] = places[-1]
        return family, override(config, more, source="flag")

    join_ranks(set_num_threads=FLAGS.set_num_threads)
    evaluate_checkpoint(
        configure,
        find_checkpoint=find_checkpoint,
        output_dir=FLAGS.output_dir,
        sets=request.test_sets or None,
        notes=notes,
        conclude=request.conclude,
    )
    return 0


if __name__ == "__main__":
    cli.run_app(main, takes_words=True)
