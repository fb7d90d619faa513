"""What all tests share: the repository first on the path, a quiet TensorFlow, the real data sets.

Runs before any test imports TensorFlow, and what it puts into the environment reaches the processes
that tests start. Also chooses which of the tests marked `nightly` a run takes.
"""

import datetime
import os
import sys
from pathlib import Path

import pytest
from commands import Commands

ROOT = Path(__file__).resolve().parent.parent

# Another project's package `object_detection` may be installed: this repository's comes first.
sys.path.insert(0, str(ROOT))

import keras_choice  # noqa: E402, F401  (before TensorFlow)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the commands do
# Two threads each: tests may run beside one another, and some start several TensorFlows.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("OMP_NUM_THREADS", "2")

# A run takes one in so many of the nightly tests, others each day: all have run after a week.
NIGHTLY_PARTS = 7


def pytest_configure(config):
    """Settles the day before workers start, which would not agree on it around midnight."""
    os.environ.setdefault("RINGDET_TESTS_DAY", str(datetime.date.today().toordinal()))


def pytest_report_header(config):
    """Says which nightly tests this run takes."""
    day = int(os.environ["RINGDET_TESTS_DAY"])
    if takes_all_nightly(config):
        return "nightly tests: all"
    return (
        f"nightly tests: part {day % NIGHTLY_PARTS + 1} of {NIGHTLY_PARTS} "
        f"(RINGDET_TESTS_DAY={day}); all with RINGDET_TESTS=all"
    )


def takes_all_nightly(config) -> bool:
    """Returns whether the command line or RINGDET_TESTS=all asks for the nightly tests."""
    return "nightly" in config.option.markexpr or os.environ.get("RINGDET_TESTS") == "all"


# Files of which only what is marked itself is quick: they build networks or wait for processes.
THOROUGH = (
    *("test_benchmarks", "test_efficientdet_backbone", "test_efficientdet_input_pipeline"),
    *("test_efficientdet_model", "test_maskrcnn_backbone", "test_maskrcnn_input_pipeline"),
    *("test_maskrcnn_model", "test_maskrcnn_task", "test_maskrcnn_weights"),
)
# The longest files, which are begun first where files run side by side.
LONGEST = ("test_slurm", "test_rank_equality", "test_maskrcnn", "test_scripts", "test_bad_input")


def place_of(item) -> int:
    """Returns where a test's file comes: the longest, others with commands, all else."""
    if item.path.stem in LONGEST:
        return LONGEST.index(item.path.stem)
    return len(LONGEST) + ("integration" not in item.path.parts)


def is_quick(item) -> bool:
    """Returns whether a test belongs to the quick part without being marked."""
    slow = any(item.get_closest_marker(name) for name in ("slow", "multi", "nightly", "gpu"))
    return not slow and "integration" not in item.path.parts and item.path.stem not in THOROUGH


def group_of(item) -> str:
    """Returns what a nightly test is chosen with: its marker's argument, or itself."""
    (*named,) = item.get_closest_marker("nightly").args
    return named[0] if named else item.nodeid


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config, items):
    """Leaves out the nightly tests that are not due, except those that are named one by one."""
    items.sort(key=place_of)  # stable: all else stays in order
    for item in filter(is_quick, items):
        item.add_marker("quick")
    if takes_all_nightly(config):
        return

    def function(node_id: str) -> str:
        return node_id.rpartition("/")[2].partition("[")[0]

    named = {function(argument) for argument in config.args if "::" in argument}
    nightly = [
        item
        for item in items
        if item.get_closest_marker("nightly") and function(item.nodeid) not in named
    ]
    part = int(os.environ["RINGDET_TESTS_DAY"]) % NIGHTLY_PARTS
    due = sorted({group_of(item) for item in nightly})[part::NIGHTLY_PARTS]
    left_out = [item for item in nightly if group_of(item) not in due]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


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
