import json
import subprocess
import sys

import pytest

from benchmarks.scaling import reduction_ms

NETWORK = {"gpu_gb_per_s": 100.0, "node_gb_per_s": 10.0, "latency_us": 50.0, "overhead_ms": 1.0}


@pytest.mark.parametrize(
    ("nodes", "gpus_per_node", "expected"),
    [
        (1, 1, 0.0),
        (1, 2, 1.0 + 0.4),  # 2 * 1/2 * 40 MB at 100 GB/s
        (2, 1, 1.0 + 4.0 + 0.1),  # 2 * 1/2 * 40 MB at 10 GB/s, one doubling
        (4, 2, 1.0 + 0.4 + 6.0 + 0.2),
    ],
)
def test_by_hand(nodes, gpus_per_node, expected):
    took = reduction_ms(nodes, megabytes=40.0, gpus_per_node=gpus_per_node, **NETWORK)
    assert took == pytest.approx(expected)


def test_command(repository):
    command = [sys.executable, "-m", "benchmarks.scaling", "--step_ms=90", "--megabytes=40"]
    command += ["--gpus_per_node=1", "--node_gb_per_s=10", "--latency_us=0", "--overhead_ms=0"]
    run = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    said = json.loads(run.stdout.splitlines()[-1])
    # The reduction takes 8 ms * (n - 1) / n: 95 % is 4.74 ms, 90 % is 10 ms, never reached.
    assert said["nodes_at_95_percent"] == 2
    assert said["nodes_at_90_percent"] == said["nodes_at_80_percent"] == 4096
    assert said["efficiency_at_4_nodes"] == pytest.approx(90 / 96)
