"""A file system that stops answering, as when the server of a network file system dies."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from waiting import wait_until

SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")
pytestmark = [
    pytest.mark.multi,
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(
        not (shutil.which("sshfs") and SFTP_SERVER.exists() and os.path.exists("/dev/fuse")),
        reason="needs sshfs, OpenSSH's sftp-server and /dev/fuse",
    ),
]


@pytest.fixture
def remote(tmp_path):
    """(folder on a network file system, process of its server)."""
    folder = tmp_path / "remote"
    (tmp_path / "exported").mkdir()
    folder.mkdir()
    ours, theirs = socket.socketpair()
    server = subprocess.Popen([SFTP_SERVER], stdin=ours, stdout=ours)
    client = subprocess.Popen(
        ["sshfs", f":{tmp_path / 'exported'}", folder, "-f", "-o", "passive"],
        stdin=theirs,
        stdout=theirs,
    )
    ours.close()
    theirs.close()
    wait_until(lambda: os.path.ismount(folder), lambda: "sshfs does not mount")
    yield folder, server
    server.send_signal(signal.SIGCONT)
    subprocess.run(["umount", "--lazy", folder], check=True)
    for process in (client, server):
        process.kill()
        process.wait()


def test_a_dead_file_system_is_named_and_ends_the_job(start, remote):
    folder, server = remote
    limits = ("--heartbeat_seconds=4", "--stall_seconds=10", "--evaluation_seconds=10")
    run = start(*limits, MODEL_DIR=str(folder / "run"))
    run.model_dir = folder / "run"
    run.wait_until_said("saved ")
    server.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        assert run.process.wait(90) == 1
        seconds = time.monotonic() - began
    finally:
        server.send_signal(signal.SIGCONT)
    said = run.said()
    assert seconds < 60, said[-6000:]
    assert "ERROR (rank 0 of 2 on " in said and " for 10 s (--" in said
    assert f"{folder}/run/logs/" in said and "does not answer: its file system is down" in said
