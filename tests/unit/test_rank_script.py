"""scripts/launch/rank.sh by itself, without a launcher."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from stub_machine import write_executable

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/launch/rank.sh"


def variables(folder, **more):
    return {
        **{"RINGDET_RANK_LOGS": str(folder), "RINGDET_LAUNCHER": "plain", "RINGDET_BIND": "none"},
        **{"RINGDET_RANKS_PER_NODE": "1", "RINGDET_STOPS_ORDERLY": "1"},
        **{"RINGDET_SIGNALS_REACH_ALL": "0", "PATH": os.environ["PATH"]},
        **more,
    }


@pytest.mark.parametrize("shell", ["", "unset EPOCHREALTIME;"])
def test_the_end_of_a_rank_has_its_time_though_a_signal_ends_the_clock(tmp_path, shell):
    write_executable(tmp_path / "date", "kill -TERM $$")
    command = f"{shell} set -- /bin/sh -c 'exit 14'; source {SCRIPT}"
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-c", command], env=variables(tmp_path, PATH=path), check=False, timeout=60
    )
    rank, _, code, time = (tmp_path / "rank-00000.end").read_text().split()
    assert (done.returncode, rank, code) == (14, "0", "14")
    assert float(time) > 1e9


def test_a_rank_whose_files_do_not_answer_still_speaks_and_ends(tmp_path):
    for name in ("rank-00000.log", "rank-00000.end"):
        os.mkfifo(tmp_path / name)  # which no one reads: to open it for writing waits for ever
    rank = subprocess.Popen(
        ["/bin/bash", SCRIPT, "/bin/sh", "-c", "echo its words; exit 3"],
        env=variables(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    assert rank.stdout is not None and rank.stdout.readline() == "its words\n"
    try:
        assert rank.wait(60) == 3
    finally:
        os.killpg(rank.pid, signal.SIGKILL)
