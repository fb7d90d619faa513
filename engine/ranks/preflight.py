"""Checks all ranks together before a run spends its first hour: `python -m engine.ranks.preflight`.

scripts/launch.sh starts it on the ranks of the run, with the flags of the run. It takes those that
name files and passes over the others. What only one process has to know is in
`engine.start.start_checks`. Rank 0 may see what other hosts do not, so each check runs on every
rank and their findings are joined.
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from engine.config.arguments import ArgumentParser
from engine.ranks import distributed, guard, machine
from outside_data.files import open_file
from outside_data.system_errors import explained
from outside_data.text import clean_lines
from path_names.patterns import match, split_patterns

# Read of the first and the last file of each set: enough to find wrong rights and dead mounts.
_READ_BYTES = 4096
_REDUCTIONS = 3
# Network file systems may show a new file late.
_SECONDS_TO_SEE = 10.0


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the flags that name files; the last of each counts, unknown ones are passed over."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--training_file_pattern", default="", help="records that all ranks read")
    parser.add_argument("--val_file_pattern", default="", help="records that all ranks read")
    parser.add_argument("--val_json_file", default="", help="annotations, read by rank 0")
    parser.add_argument("--backbone_init", default="", help="weights, read by rank 0")
    parser.add_argument("--pretrained_ckpt", default="", help="weights, read by rank 0")
    parser.add_argument("--ckpt_path", default="", help="checkpoint, read by rank 0")
    parser.add_argument("--model_dir", default="", help="folder that is written")
    parser.add_argument("--output_dir", default="", help="folder that is written otherwise")
    parser.add_argument("--min_free_gb", type=float, default=1.0, help="least space there, GB")
    parser.add_argument("--reduced_mb", type=float, default=16.0, help="size of a gradient, MB")
    return parser.parse_known_args(argv)[0]


def data_problems(patterns: Sequence[str]) -> list[str]:
    """Lists what this rank cannot read of the records that glob patterns name."""
    problems = []
    for pattern in filter(None, patterns):
        path = pattern
        try:
            files = _files(pattern)
            if not files:
                problems.append(f"no file matches {pattern}")
            for path in dict.fromkeys(files[:1] + files[-1:]):
                with open_file(path, most=None) as file:
                    file.read(_READ_BYTES)
        except OSError as error:
            problems.append(f"{path} cannot be read: {explained(error)}")
    return problems


def _files(patterns: str) -> list[str]:
    return sorted({path for pattern in split_patterns(patterns) for path in match(pattern)})


def main_problems(paths: Mapping[str, str]) -> list[str]:
    """Lists the paths that rank 0 alone needs, by flag, and does not find; a prefix will do."""
    return [
        f"{path} does not exist (--{flag})"
        for flag, path in paths.items()
        if path and not path.startswith(("pip:", "zoo:"))
        if not glob.glob(glob.escape(path) + "*")
    ]


def folder_problems(folder: Path, *, min_free_gb: float) -> list[str]:
    """Lists what is wrong with the output folder: writable, shared by all hosts, enough space.

    Collective: rank 0 writes a file and every rank looks for it.
    """
    name = distributed.broadcast_object(f".shared-probe-{uuid.uuid4().hex}")
    problems = []
    if distributed.is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("probe")
        except OSError as error:
            problems.append(f"{folder} cannot be written: {explained(error)}")
    written = not distributed.broadcast_object(problems)
    if written:
        if not _appears(folder / name):
            problems.append(
                f"{folder} is not the folder that rank 0 writes: name one that all hosts share"
            )
        elif shutil.disk_usage(folder).free < min_free_gb * 2**30:
            problems.append(f"{folder} has less than {min_free_gb:g} GiB free (--min_free_gb)")
    distributed.barrier()
    if distributed.is_main() and written:
        (folder / name).unlink()
    return problems


def _appears(path: Path) -> bool:
    end = time.monotonic() + _SECONDS_TO_SEE
    while not path.exists():
        if time.monotonic() > end:
            return False
        # Listing the folder makes NFS ask the server again.
        if path.parent.is_dir():
            os.listdir(path.parent)
        time.sleep(0.2)
    return True


def facts(patterns: Sequence[str]) -> dict[str, str]:
    """Returns what must be equal on all ranks: versions, code, size of the data."""
    report = machine.report()
    sizes = {}
    for pattern in filter(None, patterns):
        files = _files(pattern)
        total = sum(os.path.getsize(f) for f in files)
        sizes[pattern] = f"{len(files)} files, {total} bytes"
    drivers = {gpu.split(",")[1].strip() for gpu in report["gpus"] if gpu.count(",") > 1}
    return {
        "Python": report["python"],
        **report["packages"],
        "code": report["commit"],
        "GPU driver": ", ".join(sorted(drivers)),
        **sizes,
    }


def difference_problems(everyone: Sequence[tuple[str, dict[str, str]]]) -> list[str]:
    """Lists in what each rank differs from rank 0; given are (host, facts) in rank order."""
    _, expected = everyone[0]
    return [
        f"rank {rank} on {host}: {name} is {theirs.get(name) or 'missing'}, on rank 0 it is "
        f"{expected.get(name) or 'missing'}"
        for rank, (host, theirs) in enumerate(everyone)
        for name in {**expected, **theirs}
        if expected.get(name) != theirs.get(name)
    ]


def reduction_seconds(megabytes: float) -> float:
    """Returns the shortest time of an allreduce of float32 values; all ranks call it."""
    values = tf.zeros([max(int(megabytes * 1e6 / 4), 1)])
    seconds = []
    for _ in range(_REDUCTIONS + 1):
        distributed.barrier()
        began = time.perf_counter()
        distributed.reduce_sum([values])[0].numpy()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def check(args: argparse.Namespace) -> int:
    """Runs all checks and prints their outcome on rank 0; returns the exit code.

    Raises:
      AgreedError: on all ranks, if any check of any rank found a problem.
    """
    place = distributed.init()
    patterns = (args.training_file_pattern, args.val_file_pattern)
    folder = Path(args.model_dir or args.output_dir or ".")
    found = data_problems(patterns) + folder_problems(folder, min_free_gb=args.min_free_gb)
    if distributed.is_main():
        named = ("val_json_file", "backbone_init", "pretrained_ckpt", "ckpt_path")
        found += main_problems({flag: getattr(args, flag) for flag in named})
    everyone: list[Any] = distributed.all_gather_object((place.host, facts(patterns), found))
    # Once for each host, however many ranks it has.
    problems = [f"{host}: {problem}" for host, _, theirs in everyone for problem in theirs]
    problems += difference_problems([(host, their_facts) for host, their_facts, _ in everyone])
    problems = list(dict.fromkeys(problems))
    seconds = reduction_seconds(args.reduced_mb)
    devices = distributed.all_gather_object(place.device)
    if distributed.is_main():
        hosts = list(dict.fromkeys(host for host, *_ in everyone))
        free = shutil.disk_usage(_existing(folder)).free / 2**30
        _say(f"{place.size} rank(s) on {len(hosts)} host(s): {', '.join(hosts)}")
        _say(f"devices: {', '.join(dict.fromkeys(devices))}")
        _say(f"TensorFlow {tf.__version__}, Horovod joined {place.size} rank(s)")
        _say(
            f"allreduce of {args.reduced_mb:g} MB in {1000 * seconds:.1f} ms, "
            f"{args.reduced_mb / 1000 / seconds:.2f} GB/s"
        )
        _say(f"{folder} has {free:.0f} GiB free")
        if place.size > 1 and place.device != "cpu" and "NCCL" not in machine.horovod_build():
            _say("WARNING: Horovod was built without NCCL: gradients go through the hosts' memory")
        for problem in problems:
            _say(f"PROBLEM: {problem}")
    if problems:
        raise distributed.AgreedError(
            f"the preflight found {len(problems)} problem(s), see above; docs/runs.md says which "
            "variables name data, weights and results"
        )
    if distributed.is_main():
        _say("passed")
    return 0


def _say(text: str) -> None:
    print(f"preflight: {clean_lines(text)}", flush=True)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


if __name__ == "__main__":
    guard.run_guarded(lambda: check(parse_arguments(sys.argv[1:])))
