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


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_program_shows_a_stack(name, repository, tmp_path):
    for module in ("absl", "numpy", "tensorflow"):
        (tmp_path / f"{module}.py").write_text(INTERRUPTED)
    ended = subprocess.run(
        [sys.executable, repository / PROGRAMS[name].path, "--no_such_flag"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = ended.stderr.splitlines()
    assert (ended.returncode, said) == (130, ["ERROR: interrupted before the start"])


def test_other_programs_keep_their_interrupts():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ctrl_c.begun()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_of_the_program_itself_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        ctrl_c.run(interrupted)
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"
