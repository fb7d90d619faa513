"""A tiny data set and one trained run, shared by the tests that drive the commands.

Where several processes run the tests, the first that asks for one of them makes it for all.
"""

import dataclasses
import fcntl
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Result
from tiny_runs import BACKBONE, TINY_MODEL, TINY_RUN

from dataset.embedded.make_set import write_embedded_set
from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert


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


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> object:
    """Returns what make(folder) returns, called once for all processes that run the tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder.with_suffix(".made")
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            made.write_bytes(pickle.dumps(make(folder)))
        return pickle.loads(made.read_bytes())


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> TinySet:
    """The tiny data set."""

    def make(folder: Path) -> TinySet:
        made = write_embedded_set(
            folder / "coco", num_train=14, num_eval=1, image_size=96, report=lambda line: None
        )
        for split, num_shards in (("train", 3), ("val", 2)):
            convert(
                read_annotations(made.train_annotations),
                made.train_images,
                folder / "records" / split,
                num_shards=num_shards,
                mask_format="bitpacked",
            )
        return TinySet(made.train_annotations, made.train_images, folder / "records")

    return made_once(tmp_path_factory, "tiny", make)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, commands, tiny_set) -> TrainedRun:
    """Twelve epochs on the tiny set from the ImageNet backbone, with the plain command line."""

    def make(folder: Path) -> TrainedRun:
        flags = (*TINY_MODEL, *TINY_RUN, *tiny_set.flags, BACKBONE)
        run = folder / "unbroken"
        result = commands.run("train.py", *flags, f"--model_dir={run}").require_success()
        return TrainedRun(run, flags, result)

    return made_once(tmp_path_factory, "runs", make)
