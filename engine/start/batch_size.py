"""`--batch_size=auto`: the largest batch that fits into the memory of the device.

Memory grows linearly with the batch. So two short benchmarks tell the rest: the batch that would
fill most of the memory is tried, and made smaller until it fits. Each trial is a process of its
own, as one that ran out of memory may leave its device in any state. Without a GPU it is the
machine's free memory that counts, and the memory of the whole process.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.config.fields import ConfigError
from engine.ranks import machine

AUTO = "auto"
# Share of the memory that is filled: what evaluation and later batches need is not measured.
_SHARE = 0.85
_FIRST, _SECOND = 4, 8
_MOST = 512
_TRIALS = 4
# Of a control group of version 2 and of version 1: limit, use, statistics, and what of these can be
# given back at once: pages of files that were not read lately.
_OF_CONTROL_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    *(
        (f"{place}limit_in_bytes", f"{place}usage_in_bytes", f"{place}stat", "total_inactive_file")
        for place in ("memory/memory.", "memory.")
    ),
)
_PEAK = re.compile(r"peak memory ([\d.]+) GiB")


def largest_batch(
    measure: Callable[[int], float | None], limit: float, *, say: Callable[[str], None] = print
) -> int:
    """Finds the largest batch whose memory stays below a share of the limit.

    Args:
      measure: the bytes that a batch size takes, None where it does not fit.
      limit: bytes.
      say: takes a line about each trial.

    Raises:
      ConfigError: not even one image fits.
    """
    wanted = _SHARE * limit

    def tried(batch: int) -> float:
        used = measure(batch)
        amount = "more than there is" if used is None else f"{used / 2**30:.2f} GiB"
        say(f"batch_size={AUTO}: {batch} images take {amount} of {limit / 2**30:.2f} GiB")
        return math.inf if used is None else used

    first, second = tried(_FIRST), tried(_SECOND)
    if second > wanted:
        for batch in (_FIRST, 2, 1):
            if (first if batch == _FIRST else tried(batch)) <= wanted:
                return batch
        raise ConfigError(
            f"batch_size={AUTO}: not even one image fits into {limit / 2**30:.2f} GiB; take a "
            "smaller image_size or model"
        )
    batch, used = _SECOND, second
    for trial in range(_TRIALS):
        if math.isfinite(used):  # foretold by the line through the first trial and the last
            per_image = max((used - first) / (batch - _FIRST), 1.0)
            batch = min(int(_FIRST + (wanted - first) / per_image), _MOST)
        else:  # the first time it may be just too much
            batch = int(0.85 * batch) if trial == 1 else math.isqrt(_SECOND * batch)
        batch = batch // 4 * 4
        if batch <= _SECOND:
            break
        used = tried(batch)
        if used <= wanted:
            return batch
    return _SECOND


def find(argv: Sequence[str], *, records: str, num_ranks: int) -> int:
    """Finds the batch for a command line of train.py.

    Args:
      argv: the command line.
      records: folder of the records that --data makes; ''.
      num_ranks: processes that were started.

    Raises:
      ConfigError: several ranks, or nothing fits, or a trial fails for another reason.
    """
    if num_ranks > 1:
        raise ConfigError(
            f"--batch_size={AUTO} tries batches in processes of its own, but {num_ranks} ranks "
            f"were started: run the same command once with one rank, --batch_size={AUTO} and "
            "--benchmark, and give all ranks the number that it says"
        )
    is_gpu, limit = device_memory()

    def measure(batch: int) -> float | None:
        with tempfile.TemporaryDirectory() as folder:
            more = [f"--batch_size={batch}", f"--model_dir={folder}/run", "--console_seconds=0"]
            more += ["--benchmark", "--benchmark_steps=3", "--use_fake_data"]
            more += [f"--data_records={records}"] if records else []
            output = Path(folder) / "output"
            with output.open("wb") as file:
                command = [sys.executable, *argv, *more]
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            said = output.read_text(errors="replace")
        if process.returncode == 0:
            peaks = [float(peak) * 2**30 for peak in _PEAK.findall(said)]
            if is_gpu and not peaks:
                raise ConfigError(
                    f"batch_size={AUTO}: nvidia-smi lists a GPU, but the trial did not use it: see "
                    "what TensorFlow says of it (CUDA_VISIBLE_DEVICES, drivers), or give a number"
                )
            return max(peaks) if is_gpu else usage.ru_maxrss * 1024.0
        if "is out of memory" in said or (process.returncode < 0 and not is_gpu):
            return None
        last = "\n".join(said.splitlines()[-5:])
        raise ConfigError(f"batch_size={AUTO}: a trial with {batch} images failed:\n{last}")

    return largest_batch(measure, limit, say=lambda line: print(line, flush=True))


def device_memory() -> tuple[bool, float]:
    """Returns whether there is a GPU, and the bytes of its memory, or those free on this machine.

    Raises:
      ConfigError: neither can be found out.
    """
    mebibytes = [line.removesuffix(" MiB") for line in machine.gpu_facts("memory.total")]
    if mebibytes and all(map(str.isdigit, mebibytes)):
        return True, min(map(float, mebibytes)) * 2**20
    try:
        return False, free_memory()
    except (OSError, ValueError, StopIteration) as error:
        raise ConfigError(
            f"--batch_size={AUTO}: this machine does not tell its free memory ({error!r}); give a "
            "number"
        ) from error


def free_memory(proc: Path = Path("/proc"), control: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns the bytes of memory free on this machine, within the limits of its container.

    Linux tells of the machine in `proc`, of the container in the folder of its control group: of
    version 2, or of version 1, which says a number near 2**63 where there is no limit. Both count
    pages of files as used.
    """
    lines = (proc / "meminfo").read_text().splitlines()
    line = next(line for line in lines if line.startswith("MemAvailable:"))
    free = float(line.split()[1]) * 1024
    for most, now, statistics, idle in _OF_CONTROL_GROUPS:
        limit = (control / most).read_text().strip() if (control / most).is_file() else ""
        if limit.isdigit():
            counted = re.search(rf"^{idle} (\d+)$", _text(control / statistics), re.MULTILINE)
            used = float((control / now).read_text()) - float(counted[1] if counted else 0)
            free = min(free, float(limit) - used)
    return free


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
