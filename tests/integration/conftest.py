"""A tiny data set and one trained run, shared by the tests that drive the commands.

Where several processes run the tests, the first that asks for one of them makes it for all.
"""

import fcntl
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import BACKBONE, TINY_MODEL, TINY_RUN, TinySet, TrainedRun

from dataset.embedded.make_set import write_embedded_set
from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert


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


@pytest.fixture
def run_to_continue(trained_run, tmp_path):
    """A folder with the trained run's checkpoint of epoch 4."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in trained_run.folder.glob("ckpt-00000028.*"):
        shutil.copy(path, folder)
    return folder
