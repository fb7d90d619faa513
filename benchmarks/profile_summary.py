"""Sums up a profile of training steps by kind of operation: where the time went.

python train.py ... --profile_steps=40
python -m benchmarks.profile_summary --model_dir=RUN

Of a GPU its kernels are counted; without one the operations of the host. Times of threads that work
at once add up, so they are compared with their own sum and not with the clock. With XLA on a CPU a
compiled unit is one operation.
"""

from __future__ import annotations

import collections
import json
import re
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.record import define_results_flag, finish
from engine.config.fields import ConfigError
from engine.start import cli

FLAGS = flags.FLAGS

_ONEDNN = re.compile("^_Mkl(Native)?")  # oneDNN's form of the operation named after it

_NUMBER = re.compile(r"[._]\d+$")  # by which XLA tells kernels of one kind apart


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    flags.DEFINE_string(
        "model_dir", "", "Run with --profile_steps, or a --profile of run_exported."
    )
    flags.DEFINE_integer("rows", 20, "Kinds of operation to show.")
    define_results_flag("profile_summary")


def newest_profile(model_dir: str) -> Path:
    """Returns the newest profile of a run.

    Raises:
      FileNotFoundError: it has none.
    """
    profiles = "plugins/profile/*/*.xplane.pb"  # run_exported.py has no train/ above it
    found = [*Path(model_dir).glob(f"train/{profiles}"), *Path(model_dir).glob(profiles)]
    found.sort(key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"no profile in {model_dir}/train/plugins/profile: train with --profile_steps=40"
        )
    return found[-1]


def time_by_kind(space: Any) -> dict[str, float]:
    """Sums durations by kind of operation.

    Args:
      space: an XSpace message.

    Returns:
      Kind -> milliseconds, longest first.
    """
    gpus = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    total: collections.Counter[str] = collections.Counter()
    for plane in gpus or space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                # On the host an operation is NAME:KIND; all else there are calls around them.
                scope, colon, kind = name.rpartition(":")
                if gpus or (colon and scope and not scope.endswith(":") and " " not in name):
                    shown = _NUMBER.sub("", name) if gpus else _ONEDNN.sub("", kind)
                    total[shown] += event.duration_ps / 1e9
    return dict(total.most_common())


def busy_share(space: Any) -> float | None:
    """Returns the share of the time from the first to the last kernel in which one runs, 0..1.

    Copies do not count. None without a GPU.

    Args:
      space: an XSpace message.
    """
    spans = [
        (line.timestamp_ns * 1000 + event.offset_ps, event.duration_ps)
        for plane in space.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
        if not plane.event_metadata[event.metadata_id].name.startswith(("Memcpy", "Memset"))
    ]
    if not spans:
        return None
    spans.sort()
    first = end = spans[0][0]
    busy = 0
    for start, duration in spans:
        busy += max(0, start + duration - max(start, end))
        end = max(end, start + duration)
    return busy / max(end - first, 1)


def main() -> int:
    """Prints the table; returns the exit code."""
    if not FLAGS.model_dir:
        raise ConfigError("--model_dir is required: the folder of a run with --profile_steps")
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    path = newest_profile(FLAGS.model_dir)
    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    milliseconds = time_by_kind(space)
    if not milliseconds:
        raise ValueError(f"{path} holds no operation: record more steps")
    whole = sum(milliseconds.values())
    print(f"{whole:.0f} ms of operations in {path}")
    for kind, spent in list(milliseconds.items())[: FLAGS.rows]:
        print(f"  {spent / whole:6.1%}  {spent:10.1f} ms  {kind[:80]}")
    busy = busy_share(space)
    if busy is not None:
        print(f"the GPU was busy for {busy:.1%} of the recorded time")
    largest = next(iter(milliseconds))
    row = {
        "profile": str(path),
        "operations_ms": whole,
        "largest": largest,
        "busy_share": "" if busy is None else busy,
    }
    finish(row, results=FLAGS.results)
    shares = {kind: round(ms / whole, 4) for kind, ms in list(milliseconds.items())[: FLAGS.rows]}
    print(json.dumps(shares))
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
