"""Starts this project's commands for the tests, each in a process of its own.

A command is the script itself (train.py, eval.py, ...) with real flags, a real exit code and real
signals. Importing TensorFlow takes longer than most of these tests, so a command runs in a process
forked from one that has imported it and done nothing else; what runs on several ranks, or needs
another environment before its imports, is started from scratch.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras_choice

from waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 900
# Only what is installed: the code under test is imported by each command itself.
_KERAS = "tf_keras" if keras_choice.VARIABLE in os.environ else "keras"
_IMPORTED_ONCE = (
    *("tensorflow", f"{_KERAS}.api._v2.keras", "pycocotools.cocoeval"),
    *("matplotlib.backends.backend_agg", "matplotlib.figure", "skimage.measure", "yaml"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended: its exit code (negative: killed by that signal) and what it said."""

    code: int
    output: str
    errors: str

    def require_success(self) -> Result:
        """Returns itself; fails with what the command said unless it ended with code 0."""
        assert self.code == 0, self.everything()
        return self

    def require_explained_failure(self, *words: str) -> str:
        """Returns the explanation of a failure that was foreseen.

        Fails unless the command ended with a failure code, without a stack trace, and with an
        explanation that starts with ERROR and holds all the words.
        """
        everything = self.everything()
        assert self.code not in (0, 75), everything
        assert "Traceback" not in everything, everything
        _, found, said = self.errors.partition("ERROR")
        assert found, everything
        for word in words:
            assert word in said, f"{word!r} is not in: {said}"
        return said

    def everything(self) -> str:
        """Returns exit code and output in one text."""
        return f"exit code {self.code}\n{self.output[-5000:]}\n{self.errors[-5000:]}"


class Running:
    """A command that may still be running."""

    def __init__(self, process: multiprocessing.Process, output: Path, errors: Path):
        self._process, self._output, self._errors = process, output, errors

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        os.kill(self._process.pid, number)

    def said(self) -> str:
        """Returns the standard output so far."""
        return self._output.read_text(errors="replace")

    def wait_until_said(self, text: str, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """Waits for a text on the standard output; fails if the command ends first."""
        wait_until(
            lambda: not self._process.is_alive() or text in self.said(),
            lambda: f"never said {text!r}:\n{self.said()[-3000:]}",
            seconds=timeout,
        )
        assert text in self.said(), f"ended without {text!r}:\n{self.said()[-3000:]}"

    def wait(self, *, timeout: float = TIMEOUT_SECONDS) -> Result:
        """Waits for the end; kills the command and fails when it takes too long."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise AssertionError(f"no end after {timeout} s:\n{self.said()[-3000:]}")
        errors = self._errors.read_text(errors="replace")
        return Result(self._process.exitcode, self.said(), errors)


class Commands:
    """Starts commands; their output goes to files in a folder.

    Args:
      folder: for the output files.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._numbers = itertools.count(1)  # threads may start commands
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_IMPORTED_ONCE))

    def start(
        self, script: str, *flags: object, environment: Mapping[str, str] | None = None
    ) -> Running:
        """Starts a script of the repository, or a module of it as `python -m` does."""
        output = self._folder / f"{next(self._numbers):03d}-{Path(script).stem}.out"
        errors = output.with_suffix(".err")
        output.touch()
        errors.touch()
        name = str(ROOT / script) if script.endswith(".py") else script
        arguments = (name, flags, dict(environment or {}), str(output), str(errors))
        process = self._context.Process(target=_run_script, args=arguments)
        process.start()
        return Running(process, output, errors)

    def run(
        self,
        script: str,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> Result:
        """Runs a script or module of the repository to its end."""
        return self.start(script, *flags, environment=environment).wait(timeout=timeout)


def _run_script(
    script: str, flags: Sequence[str], environment: Mapping[str, str], output: str, errors: str
) -> None:
    """Becomes `python script flags`; in the forked process."""
    for path, descriptor in ((output, 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.update(environment)
    sys.argv = [script, *map(str, flags)]
    os.chdir(ROOT)
    if script.endswith(".py"):
        sys.path.insert(0, os.path.dirname(script))
        runpy.run_path(script, run_name="__main__")
    else:
        sys.path.insert(0, str(ROOT))
        runpy.run_module(script, run_name="__main__", alter_sys=True)


def run_from_scratch(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    timeout: float = TIMEOUT_SECONDS,
) -> Result:
    """Runs any command line in a new process group, which ends with it."""
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = Result(-signal.SIGKILL, *process.communicate()).everything()
        raise AssertionError(f"no end after {timeout} s: {said}") from None
    return Result(process.returncode, output, errors)


def python(script: str, *flags: str, **options: object) -> Result:
    """Runs a script of the repository in an interpreter of its own."""
    return run_from_scratch([sys.executable, ROOT / script, *flags], **options)


def mpirun(ranks: int, script: str | Path, *flags: str, **options: object) -> Result:
    """Runs a script of the repository on several ranks."""
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    launcher = ["mpirun", "-np", str(ranks), *root, "--oversubscribe", "--bind-to", "none"]
    # The environment may bring its own mpirun, as scripts/quickstart.py knows.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, **options.pop("environment", {})}
    command = [*launcher, sys.executable, ROOT / script, *flags]
    return run_from_scratch(command, environment=environment, **options)
