"""scripts/launch/rank.sh by itself, without a launcher."""

import os
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_rank_whose_files_do_not_answer_still_speaks_and_ends(tmp_path):
    for name in ("rank-00000.log", "rank-00000.end"):
        os.mkfifo(tmp_path / name)  # which no one reads: to open it for writing waits for ever
    variables = {
        **{"RINGDET_RANK_LOGS": str(tmp_path), "RINGDET_LAUNCHER": "plain", "RINGDET_BIND": "none"},
        **{"RINGDET_RANKS_PER_NODE": "1", "RINGDET_STOPS_ORDERLY": "1"},
        **{"RINGDET_SIGNALS_REACH_ALL": "0", "PATH": os.environ["PATH"]},
    }
    rank = subprocess.Popen(
        ["/bin/bash", ROOT / "scripts/launch/rank.sh", "/bin/sh", "-c", "echo its words; exit 3"],
        env=variables,
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
