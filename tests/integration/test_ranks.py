"""Two ranks on this machine: collectives, equality with one rank, and the end of a failing rank.

The checks themselves are in `rank_programs/`; starting ranks takes longer than running them, so one
launch runs all and each has a test that reads its outcome.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from commands import ROOT, Result, mpirun, run_from_scratch

pytestmark = pytest.mark.multi

PROGRAMS = Path(__file__).resolve().parent / "rank_programs"
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
CHECKS = re.findall(r"^def (check_\w+)", (PROGRAMS / "collectives.py").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def under_mpi() -> Result:
    """The collectives under mpirun; rows go through mpi4py."""
    return mpirun(2, PROGRAMS / "collectives.py", environment=ENVIRONMENT, timeout=400)


@pytest.fixture(scope="module")
def under_gloo() -> Result:
    """The same under horovodrun without MPI."""
    launcher = Path(sys.executable).parent / "horovodrun"
    if not launcher.exists() and not shutil.which("horovodrun"):
        pytest.skip("no horovodrun")
    command = [launcher, "--gloo", "--disable-cache", "--network-interfaces", "lo", "-np", "2"]
    path = f"{launcher.parent}{os.pathsep}{os.environ['PATH']}"
    return run_from_scratch(
        [*command, "-H", "localhost:2", sys.executable, PROGRAMS / "collectives.py"],
        environment={**ENVIRONMENT, "PATH": path},
        timeout=400,
    )


@pytest.mark.parametrize("check", CHECKS)
def test_under_mpi(under_mpi, check):
    assert f"PASSED {check}\n" in under_mpi.output, under_mpi.output + under_mpi.errors[-3000:]


@pytest.mark.both_stacks  # under MPI test_rank_equality.py runs with both
@pytest.mark.parametrize("check", CHECKS)
def test_under_gloo(under_gloo, check):
    assert f"PASSED {check}\n" in under_gloo.output, under_gloo.output + under_gloo.errors[-3000:]


def test_the_programs_end_well(under_mpi, under_gloo):
    assert under_mpi.code == under_gloo.code == 0


def failing(kind: str) -> Result:
    """Returns how two ranks ended of which one fails."""
    program = PROGRAMS / "failing_rank.py"
    # Well below Horovod's own limit of minutes; most of it is the import of TensorFlow.
    result = mpirun(2, program, kind, environment=ENVIRONMENT, timeout=150)
    assert result.code != 0
    return result


def test_one_failing_rank_ends_the_others():
    result = failing("one rank")
    host = os.uname().nodename
    assert f"ERROR (rank 1 of 2 on {host}): OSError: disk full on purpose" in result.errors
    assert "nobody failed" not in result.output


def test_what_rank_0_does_for_all_is_told_once():
    result = failing("rank 0 for all")
    said = [line for line in result.errors.splitlines() if "ERROR (rank" in line]
    assert len(said) == 1, result.errors
    assert "ERROR (rank 0 of 2" in said[0] and "FileNotFoundError" in said[0]
    assert "Traceback" not in result.errors


def test_a_rank_that_fails_before_joining_ends_the_others():
    result = failing("before joining")
    assert "ERROR (rank 0 of 2" in result.errors and "a wrong setting" in result.errors
