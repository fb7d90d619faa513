"""What all tests share: the repository first on the path, a quiet TensorFlow, the real data sets.

Runs before any test imports TensorFlow, and what it puts into the environment reaches the processes
that tests start.
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Another project's package `object_detection` may be installed: this repository's comes first.
sys.path.insert(0, str(ROOT))

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the commands do
# Two threads each: tests may run beside one another, and some start several TensorFlows.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root folder of the repository."""
    return ROOT


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
