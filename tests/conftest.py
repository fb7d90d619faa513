"""What all tests share: the repository first on the path, a quiet TensorFlow, the real data sets.

Runs before any test imports TensorFlow, and what it puts into the environment reaches the processes
that tests start. Also chooses which of the tests marked `nightly` a run takes.
"""

import datetime
import os
import signal
import subprocess
import sys
from pathlib import Path

import parts
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Another project's package `object_detection` may be installed: this repository's comes first.
sys.path.insert(0, str(ROOT))

import keras_choice  # noqa: E402, F401  (before TensorFlow)

from commands import Commands  # noqa: E402

# A shell starts what it puts in the background deaf to interrupts, and processes hand that on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the commands do
# Two threads each: tests may run beside one another, and some start several TensorFlows.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Ranks meet every so many ms, not every one, and turn round and round until they do: two that trace
# a Mask R-CNN took 41 s of processor time in place of 49 (2 cores, 2026-11-29).
os.environ.setdefault("HOROVOD_CYCLE_TIME", "10")


def pytest_configure(config):
    """Settles the day before workers start, which would not agree on it around midnight."""
    os.environ.setdefault("RINGDET_TESTS_DAY", str(datetime.date.today().toordinal()))


def pytest_report_header(config):
    """Says which nightly tests this run takes."""
    if parts.takes_all_nightly(config):
        return "nightly tests: all"
    part = parts.day() % parts.NIGHTLY_PARTS + 1
    return (
        f"nightly tests: part {part} of {parts.NIGHTLY_PARTS} (RINGDET_TESTS_DAY={parts.day()}); "
        "all with RINGDET_TESTS=all"
    )


def pytest_make_parametrize_id(val, argname):
    """Calls bytes by their argument: archives hold the time, and workers must name tests alike."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config, items):
    """Puts the longest first, marks what is quick, leaves out nightly tests that are not due."""
    items.sort(key=parts.place_of)  # stable: all else stays in order
    for item in filter(parts.is_quick, items):
        item.add_marker("quick")
    if parts.takes_all_nightly(config):
        return
    left_out = parts.not_due(items, day=parts.day(), arguments=config.args)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(tryfirst=True)  # before fixtures, which build networks
def pytest_runtest_setup(item):
    """Gives every test the same random numbers, alone or after others: weights of networks too."""
    if tensorflow := sys.modules.get("tensorflow"):
        tensorflow.keras.utils.set_random_seed(20)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Commands:
    """Starts the project's commands."""
    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="session")
def detection_test_data() -> Path:
    """The folder with the real data sets (bccd, coco_cc, nuclei).

    DETECTION_TEST_DATA names it; the default is `shared/data` beside the repository. A test that
    asks for it is skipped where there is none.
    """
    folder = Path(os.environ.get("DETECTION_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets in {folder}; name their folder with DETECTION_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def reported_cases(tmp_path_factory, detection_test_data) -> Path:
    """The folder of data sets with one fault each, after public reports, made once.

    The program that makes them is not part of this repository: DETECTION_TEST_CASES names its
    folder, by default `shared/cases` beside the repository.
    """
    source = Path(os.environ.get("DETECTION_TEST_CASES", ROOT.parent / "shared" / "cases"))
    if not (source / "make_cases.py").is_file():
        pytest.skip(f"no make_cases.py in {source}; name its folder with DETECTION_TEST_CASES")
    folder = tmp_path_factory.mktemp("cases")
    command = [sys.executable, "make_cases.py", str(folder), "--data", str(detection_test_data)]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    return folder
