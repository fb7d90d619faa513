"""What the machine says of itself."""

import json
import os

import numpy as np
import pytest

from engine.ranks import machine


def test_the_report_is_plain_and_complete():
    report = json.loads(json.dumps(machine.report()))
    assert {"python", "platform", "host", "cores", "packages", "commit", "gpus"} == set(report)
    assert report["packages"]["numpy"] == np.__version__
    assert report["cores"] >= 1


@pytest.mark.parametrize(
    ("cores", "all_cores", "slurm", "ranks", "expected"),
    [
        (16, 16, "", 1, 16),
        (16, 16, "", 4, 4),
        (16, 16, "", 5, 3),
        (2, 2, "", 4, 1),
        (4, 16, "", 4, 4),  # bound by the launcher: 4 cores each
        (16, 16, "6", 2, 6),  # Slurm's cpus-per-task
        (4, 16, "6", 2, 4),
    ],
)
def test_cores_of_a_rank(cores, all_cores, slurm, ranks, expected, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: all_cores)
    assert machine.cores_per_rank(ranks) == expected


def test_no_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.git_commit() == ""
