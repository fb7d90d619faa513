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
    ("cores", "all_cores", "slurm", "quota", "ranks", "expected"),
    [
        (16, 16, "", {}, 1, 16),
        (16, 16, "", {}, 4, 4),
        (16, 16, "", {}, 5, 3),
        (2, 2, "", {}, 4, 1),
        (4, 16, "", {}, 4, 4),  # bound by the launcher: 4 cores each
        (16, 16, "6", {}, 2, 6),  # Slurm's cpus-per-task
        (4, 16, "6", {}, 2, 4),
        (16, 16, "", {"cpu.max": "400000 100000\n"}, 1, 4),  # a container of 4 of the cores
        (16, 16, "", {"cpu.max": "400000 100000\n"}, 4, 1),
        (16, 16, "", {"cpu.max": "50000 100000\n"}, 1, 1),
        (4, 16, "", {"cpu.max": "800000 100000\n"}, 4, 2),  # bound, in a container of 8 of them
        (16, 16, "6", {"cpu.max": "900000 100000\n"}, 2, 4),
        (16, 16, "", {"cpu.max": "max 100000\n"}, 1, 16),
        (16, 16, "", {"cpu.cfs_quota_us": "250000\n", "cpu.cfs_period_us": "100000\n"}, 1, 3),
        (16, 16, "", {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 1, 16),
    ],
)
def test_cores_of_a_rank(cores, all_cores, slurm, quota, ranks, expected, monkeypatch, tmp_path):
    (tmp_path / "cpu").mkdir()
    for name, content in quota.items():
        (tmp_path / ("" if name == "cpu.max" else "cpu") / name).write_text(content)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: all_cores)
    assert machine.cores_per_rank(ranks) == expected


def test_no_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.git_commit() == ""
