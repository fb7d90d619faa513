"""Signals that ask a run to end: the first is noted, its echo ignored, a later one obeyed."""

import errno
import os
import signal
import subprocess
import sys

from engine.ranks import stop_signals
from engine.ranks.stop_signals import StopSignals

PROGRAM = """
import os, signal, time
from engine.ranks.stop_signals import StopSignals
with StopSignals():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(float({wait}))
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""


def test_the_first_is_noted_and_its_echo_ignored(capfd):
    before = signal.getsignal(signal.SIGUSR1)
    with StopSignals() as signals:
        assert signals.received == ""
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        assert signals.received == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) is before
    assert capfd.readouterr().err.count("finishing the step") == 1


def test_a_later_one_ends_the_process(repository):
    wait = stop_signals._SAME_REQUEST_SECONDS + 0.2
    command = [sys.executable, "-c", PROGRAM.format(wait=wait)]
    ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + signal.SIGINT
    assert "still here" not in ended.stdout


def test_a_closed_terminal_is_a_request_unless_it_was_to_be_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopSignals() as signals:
            monkeypatch.setattr(os, "write", gone)
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == "SIGHUP"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == ""
    finally:
        signal.signal(signal.SIGHUP, before)


def gone(descriptor: int, said: bytes) -> int:
    raise OSError(errno.EIO, "Input/output error")
