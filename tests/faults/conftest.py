"""Runs of the tiny family under the launcher, to which faults are done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stub_machine import in_place_of_train
from waiting import is_running, wait_until

ROOT = Path(__file__).resolve().parents[2]
# Generous for a busy machine; a run that does not come this far within it hangs.
SECONDS = 180


class FaultyRun:
    """A run of `tiny_run.py` under scripts/launch.sh.

    Args:
      folder: for the run and the stand-in for Python.
      ranks, launcher: how it is started.
      flags: of the program.
      variables: of the environment.
    """

    def __init__(
        self, folder: Path, *flags: str, ranks: int = 2, launcher: str = "mpirun", **variables: str
    ):
        self.folder, self.model_dir = folder, folder / "run"
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **in_place_of_train(folder, ROOT / "tests/faults/tiny_run.py"),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "MODEL_DIR": str(self.model_dir),
            "NGPU": str(ranks),
            "LAUNCHER": launcher,
            "PREFLIGHT": "0",
            "STEP_SECONDS": "0.1",
            "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1",
            **variables,
        }
        self._output = folder / "output"
        script = ROOT / "scripts" / "D0" / "convergence-AMP-8xA100-80G.sh"
        with self._output.open("a") as output:
            self.process = subprocess.Popen(
                ["/bin/bash", str(script), "--num_epochs=1000", "--checkpoint_period=1", *flags],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        """Returns the console, then the logs of all ranks."""
        logs = sorted(self.model_dir.glob("logs/*/rank-*.log"))
        return "\n".join(p.read_text(errors="replace") for p in (self._output, *logs))

    def wait_until_said(self, text: str) -> None:
        """Waits for a text; fails if the run ends first."""
        wait_until(
            lambda: self.process.poll() is not None or text in self.said(),
            lambda: self.said()[-6000:],
            seconds=SECONDS,
        )
        assert text in self.said(), self.said()[-6000:]

    def pids(self) -> list[int]:
        """Returns the processes of the ranks, in rank order."""
        records = sorted(self.model_dir.glob("logs/*/rank-*.child"))
        return [int(path.read_text()) for path in records]

    def wait(self, seconds: float = SECONDS) -> int:
        """Waits for the launcher's end and for that of all ranks; returns the exit code."""
        code = self.process.wait(timeout=seconds)
        self.wait_for_ranks(20)
        return code

    def wait_for_ranks(self, seconds: float) -> None:
        """Waits until no rank is there any more."""
        wait_until(
            lambda: not any(map(is_running, self.pids())),
            lambda: f"still there: {list(filter(is_running, self.pids()))}\n{self.said()[-6000:]}",
            seconds=seconds,
        )

    def kill(self) -> None:
        """Leaves nothing running."""
        for pid in [self.process.pid, *self.pids()]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path):
    """Starts runs, which end with the test."""
    runs = []

    def start(*flags: str, folder: Path = tmp_path, **options) -> FaultyRun:
        runs.append(FaultyRun(folder, *flags, **options))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()
