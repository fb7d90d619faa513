"""Ranks that freeze and launchers that are killed: named, ended, continued. Two real ranks."""

import os
import signal
import time

import pytest

pytestmark = [pytest.mark.multi, pytest.mark.slow]

LIMITS = ("--heartbeat_seconds=4", "--stall_seconds=60")
NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    ("launcher", "frozen"),
    [
        ("mpirun", 1),
        pytest.param("mpirun", 0, marks=NIGHTLY),
        pytest.param("horovodrun", 1, marks=NIGHTLY),
        pytest.param("horovodrun", 0, marks=NIGHTLY),
    ],
)
def test_a_frozen_rank_is_named_and_ends_the_job(start, launcher, frozen):
    run = start(*LIMITS, launcher=launcher)
    run.wait_until_said("saved ")
    os.kill(run.pids()[frozen], signal.SIGSTOP)
    began = time.monotonic()
    code = run.wait(60)
    seconds, said = time.monotonic() - began, run.said()
    assert code == 1, said[-6000:]
    assert seconds < 45, f"{seconds:.0f} s\n{said[-6000:]}"
    host = os.uname().nodename
    assert f"rank {frozen} of 2 on {host} is frozen or cut off: no sign of life for" in said
    assert "last seen at: " in said and "the same command continues from " in said
    # In a step, or in the broadcast that ends a save.
    assert f"rank {1 - frozen} of 2 on {host} stands here:" in said
    assert ", in _train_epoch\n" in said or ", in save\n" in said


@pytest.mark.nightly
def test_a_rank_that_stands_still_is_named(start):
    run = start("--heartbeat_seconds=4", "--stall_seconds=5", SLOW_RANK="1", STUCK_SECONDS="50")
    code = run.wait()
    said = run.said()
    assert code == 1, said[-6000:]
    assert "rank 1 of 2 on" in said and "stands still for 5 s (--stall_seconds)" in said
    assert "at: reading the batches of step 5; the other ranks wait for it" in said
    assert "in train_dataset" in said, "the stack of the rank that stands still"


@pytest.mark.nightly
def test_ranks_of_a_killed_launcher_save_and_leave(start):
    run = start()
    run.wait_until_said("saved ")
    os.kill(run.process.pid, signal.SIGKILL)
    run.wait_for_ranks(30)
    said = run.said()
    assert "the launcher was killed" in said and "the same command continues here" in said


@pytest.mark.nightly
def test_one_signal_ends_a_job_with_a_frozen_rank(start):
    run = start("--heartbeat_seconds=0", STOP_SECONDS="3")
    run.wait_until_said("saved ")
    os.kill(run.pids()[1], signal.SIGSTOP)
    run.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert run.wait(60) != 0
    assert time.monotonic() - began < 25, run.said()[-6000:]
