"""Ctrl-C while programs load: one line and code 130, whatever an import makes of it."""

import os
import shutil
import signal
import subprocess
import sys

import ctrl_c

import pytest
from own_files import ROOT, own_files

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


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python 3.9 does not tell what -m names")
@pytest.mark.parametrize("module", ["ringdet", "dataset.check"])
def test_a_module_around_which_a_package_fails_is_one_line(module, repository):
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "0", "PYTHONPATH": str(repository)}
    command = [sys.executable, "-m", module]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("ERROR: TF_USE_LEGACY_KERAS=0 asks for Keras 3")


# A user's program in the repository; a notebook's, where all is installed side by side.
@pytest.mark.parametrize("words", [["mine.py"], ["-m", "mine"], ["-m", "mine_too.kernel"]])
def test_programs_beside_the_packages_keep_their_interrupts(words, repository, tmp_path):
    shutil.copytree(repository / "ctrl_c", tmp_path / "ctrl_c")
    body = "import ctrl_c, signal\nprint(signal.getsignal(signal.SIGINT).__name__)\n"
    (tmp_path / "mine_too").mkdir()
    for name in ("mine.py", "mine_too/__init__.py", "mine_too/kernel.py"):
        (tmp_path / name).write_text(body)
    command = [sys.executable, *words]
    said = subprocess.check_output(command, cwd=tmp_path, text=True, timeout=60)
    assert set(said.split()) == {"default_int_handler"}


def test_the_programs_of_the_repository_are_known():
    programs = {
        file.relative_to(ROOT).with_suffix("").parts[0]
        for file in own_files("**/*.py")
        if "if __name__ ==" in file.read_text() or file.name == "__main__.py"
    }
    assert set(ctrl_c._PROGRAMS) == programs - {"tests"}


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
