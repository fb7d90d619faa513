"""A machine for the launcher: a PATH of stubs, and dry runs of scripts on it."""

import re
import shlex
import subprocess
from pathlib import Path

from stub_machine import StubMachine

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    "awk basename bash cat cut date dirname env getconf grep head id ls lscpu mkdir nproc paste "
    "printf sed seq setpriv setsid sleep sort tail taskset tee tr true uname wc"
).split()


class Machine(StubMachine):
    """Stubs and the few tools that the launcher needs.

    Args:
      folder: for them and for results.
      gpus: of the host, which then has Open MPI too.
    """

    folder = "scripts/D0"

    def __init__(self, folder: Path, *, gpus: int = 0):
        super().__init__(folder, TOOLS)
        self.results = folder / "results"
        if gpus:
            self.add("mpirun")
            self.add("nvidia-smi", f'for i in {{1..{gpus}}}; do echo "GPU $i: x"; done')

    def add_slurm(self, *, mpi: str = "pmix", options: str = "") -> None:
        """Adds srun and scontrol of a cluster."""
        self.add(
            "srun",
            f'[ "$1" = --mpi=list ] && echo "MPI plugin types are... {mpi}"; echo "{options}"',
        )
        self.add("scontrol", '[ "$2" = hostnames ] && printf "a1\\na2\\n"; true')

    def environment(self, **variables: str) -> dict:
        """Returns the environment of a start."""
        return {
            "PATH": str(self.bin),
            "HOME": str(self.results),
            "RINGDET_VENV": "/nowhere",
            "RESULTS_DIR": str(self.results),
            **variables,
        }

    def run(self, script: str, *flags: str, **variables: str) -> subprocess.CompletedProcess:
        """Runs a script of `folder`, or any of the repository if its path is given."""
        path = ROOT / (script if "/" in script else f"{self.folder}/{script}")
        return subprocess.run(
            ["/bin/bash", str(path), *flags],
            env=self.environment(**variables),
            cwd=self.bin.parent,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def dry(self, script: str, *flags: str, **variables: str) -> list:
        """Returns the words of the command that a script would run."""
        result = self.run(script, *flags, DRY_RUN="1", **variables)
        assert result.returncode == 0, result.stderr
        return shlex.split(result.stdout.splitlines()[-1])


def in_job(nodes=2, tasks=8):
    """Returns the variables of a batch job."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_JOB_NODELIST": "a[1-2]",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }


def flags_of(command):
    """Returns flag -> value of a command's `--flag=value` words; the last one counts."""
    return dict(word[2:].split("=", 1) for word in command if re.match(r"--\w+=", word))
