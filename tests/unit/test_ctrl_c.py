"""Ctrl-C while programs load: one line and code 130, whatever an import makes of it."""

import os
import signal
import subprocess
import sys

import ctrl_c

import pytest

from ringdet.programs import PROGRAMS

# In the place of the first modules that take time to import.
INTERRUPTED = """import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(20)
except KeyboardInterrupt:
    raise ImportError("as NumPy does") from None
"""

# For Python's start: as soon as the program reads its command line.
AT_THE_FLAGS = """import argparse, os, signal
argparse.ArgumentParser.parse_args = lambda self: os.kill(os.getpid(), signal.SIGINT)
"""


def interrupted(program, folder, flag):
    """Returns the exit code of a program that finds modules in a folder, and what it said."""
    ended = subprocess.run(
        [sys.executable, program, flag],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_program_shows_a_stack(name, repository, tmp_path):
    for module in ("absl", "numpy", "tensorflow"):
        (tmp_path / f"{module}.py").write_text(INTERRUPTED)
    ended = interrupted(repository / PROGRAMS[name].path, tmp_path, "--no_such_flag")
    assert ended == (130, "ERROR: interrupted before the start\n")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_missing_module_is_one_line(name, repository, tmp_path):
    for module in ("absl", "numpy", "tensorflow", "yaml"):
        (tmp_path / f"{module}.py").write_text("import one_that_is_not_there")
    code, said = interrupted(repository / PROGRAMS[name].path, tmp_path, "--no_such_flag")
    assert code == 1 and said.count("\n") == 1
    assert "has no module one_that_is_not_there: activate the environment" in said


def test_a_refused_keras_is_one_line(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    code, said = interrupted(repository / "train.py", tmp_path, "--help")
    assert code == 1 and said.startswith("ERROR: TF_USE_LEGACY_KERAS=0 asks for Keras 3")
    assert said.count("\n") == 1


def test_any_other_failure_shows_where(repository, tmp_path):
    (tmp_path / "absl.py").write_text("raise ImportError('libcudnn.so.9', name='libcudnn')")
    code, said = interrupted(repository / "train.py", tmp_path, "--help")
    assert code == 1 and said.startswith("Traceback") and "libcudnn.so.9" in said


@pytest.mark.parametrize("name", ["quickstart", "overfit"])
def test_an_interrupt_at_work_is_one_line(name, repository, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(AT_THE_FLAGS)
    ended = interrupted(repository / "scripts" / f"{name}.py", tmp_path, "--data=/nowhere")
    assert ended == (130, "interrupted\n")


def test_other_programs_keep_their_interrupts():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ctrl_c.begun()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_of_the_program_itself_is_one_line(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        ctrl_c.run(main)
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"
