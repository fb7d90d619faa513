"""Computes how far a training scales, on paper: from a step's time and the gradient's size.

python -m benchmarks.scaling --step_ms=94.5 --megabytes=7.8 --node_gb_per_s=12.5

The gradient is reduced after the backward pass, so its time is not hidden. First among the GPUs of
a node, then every node exchanges with two others in a ring that the node's network bounds; the
latency of a message is paid twice for each doubling of nodes. Ranks that wait for a slower one are
not in it.
"""

from __future__ import annotations

import json

from absl import flags

from benchmarks.record import print_table
from engine.config.fields import ConfigError
from engine.start import cli

FLAGS = flags.FLAGS

# Shares of the ideal throughput of which the largest number of nodes is told.
_EFFICIENCIES = (0.95, 0.9, 0.8)
_MOST_NODES = 4096


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    flags.DEFINE_float("step_ms", None, "Step of one rank without the reduction, ms.")
    flags.DEFINE_float("megabytes", None, "Gradient as it travels, MB.")
    flags.DEFINE_integer("gpus_per_node", 8, "Ranks of a node.")
    flags.DEFINE_float("gpu_gb_per_s", 300.0, "Between the GPUs of a node, GB/s and direction.")
    flags.DEFINE_float("node_gb_per_s", 12.5, "Between nodes, GB/s and direction of a whole node.")
    flags.DEFINE_float("latency_us", 10.0, "Of a message between nodes, microseconds.")
    flags.DEFINE_float("overhead_ms", 1.0, "Until Horovod begins: its cycle time, ms.")


def reduction_ms(
    nodes: int,
    *,
    megabytes: float,
    gpus_per_node: int,
    gpu_gb_per_s: float,
    node_gb_per_s: float,
    latency_us: float,
    overhead_ms: float,
) -> float:
    """Returns the milliseconds of one allreduce, 0 for a single rank; MB over GB/s is ms."""
    if nodes * gpus_per_node == 1:
        return 0.0
    inside = 2.0 * (gpus_per_node - 1) / gpus_per_node * megabytes / gpu_gb_per_s
    between = 2.0 * (nodes - 1) / nodes * megabytes / node_gb_per_s
    doublings = (nodes - 1).bit_length()
    return overhead_ms + inside + between + 2e-3 * doublings * latency_us


def main() -> int:
    """Prints efficiency by number of nodes; returns the exit code."""
    if not (FLAGS.step_ms and FLAGS.megabytes):
        raise ConfigError("--step_ms and --megabytes are required: see docs/scaling.md")
    names = ("megabytes", "gpus_per_node", "gpu_gb_per_s", "node_gb_per_s", "latency_us")
    network = {name: FLAGS[name].value for name in (*names, "overhead_ms")}

    def efficiency(nodes: int) -> float:
        return FLAGS.step_ms / (FLAGS.step_ms + reduction_ms(nodes, **network))

    shown = {f"{n} node(s)": efficiency(n) for n in (1, 2, 4, 8, 16, 32)}
    print_table({**network, **shown})
    farthest = {
        f"nodes_at_{100 * least:.0f}_percent": max(
            (n for n in range(1, _MOST_NODES + 1) if efficiency(n) >= least), default=0
        )
        for least in _EFFICIENCIES
    }
    print(json.dumps({**farthest, "efficiency_at_4_nodes": shown["4 node(s)"]}))
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
