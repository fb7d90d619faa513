"""One run at a time in a folder: refused, taken over, given back."""

import json
import os
import subprocess
import sys
import time

import pytest
from waiting import wait_until

from engine.config.fields import ConfigError
from engine.start import run_lock
from engine.start.run_lock import NAME, RunLock

STALE = 1.0


def lock_of(folder, **options) -> RunLock:
    return RunLock(folder, stale_seconds=STALE, on_lost=options.get("on_lost", pytest.fail))


@pytest.fixture
def lock(tmp_path):
    made = lock_of(tmp_path)
    made.acquire()
    yield made
    made.release()


def change(folder, **values) -> None:
    """Makes the lock in a folder that of another process."""
    content = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps({**content, **values}))


def test_the_second_is_refused_at_once_on_the_same_host(lock, tmp_path):
    began = time.monotonic()
    with pytest.raises(ConfigError) as error:
        lock_of(tmp_path).acquire()
    assert time.monotonic() - began < STALE / 2
    message = str(error.value)
    assert f"host {os.uname().nodename}, process {os.getpid()}, started 2" in message
    assert "running for 0s" in message and "another --model_dir" in message


def test_a_lock_that_beats_is_that_of_a_living_run_on_another_host(lock, tmp_path, monkeypatch):
    monkeypatch.setitem(lock._content, "space", "other")
    monkeypatch.setitem(lock._content, "host", "node9")
    change(tmp_path, space="other", host="node9")
    said = []
    with pytest.raises(ConfigError, match="in use by another run .host node9"):
        lock_of(tmp_path).acquire(said.append)
    assert "waiting up to 1 s for a sign of life (--lock_seconds)" in said[0]


def test_a_lock_that_stands_still_is_taken_over(tmp_path):
    dead = lock_of(tmp_path)
    assert dead._create()
    change(tmp_path, space="other", host="node9", pid=77)
    os.utime(tmp_path / NAME, (2e9, 2e9))  # a clock that is far ahead does not matter
    said = []
    ours = lock_of(tmp_path)
    ours.acquire(said.append)
    assert "host node9, process 77" in said[1] and "its lock is taken over" in said[1]
    ours.release()
    assert os.listdir(tmp_path) == []


def test_a_killed_process_of_this_host_is_not_waited_for(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    dead = lock_of(tmp_path)
    dead._content |= {"pid": process.pid, "process": run_lock._process(process.pid)}
    dead._beat_seconds = 1000.0
    assert dead._create()
    with pytest.raises(ConfigError, match=f"process {process.pid}"):
        lock_of(tmp_path).acquire()
    process.kill()
    process.wait()
    ours = lock_of(tmp_path)
    ours.acquire(lambda text: None)
    ours.release()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"host": 3}', "[" * 9999])
def test_a_damaged_lock_does_not_stay_for_ever(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    ours = lock_of(tmp_path)
    ours.acquire(lambda text: None)
    ours.release()


def test_a_run_that_was_taken_for_dead_learns_of_it(tmp_path):
    lost = []
    first = lock_of(tmp_path, on_lost=lost.append)
    first.acquire()
    change(tmp_path, token="another", host="node9")
    wait_until(lambda: lost, lambda: "it never learned", seconds=10)
    assert "host node9" in lost[0] and "writes nothing more" in lost[0]
    first.release()
    assert json.loads((tmp_path / NAME).read_text())["token"] == "another"


def test_a_lock_is_not_taken_from_one_who_was_faster(tmp_path):
    dead = lock_of(tmp_path)
    assert dead._create()
    seen = run_lock._read(tmp_path / NAME)
    change(tmp_path, token="faster")
    assert not lock_of(tmp_path)._take_away(seen)
    assert json.loads((tmp_path / NAME).read_text())["token"] == "faster"
    assert os.listdir(tmp_path) == [NAME]
