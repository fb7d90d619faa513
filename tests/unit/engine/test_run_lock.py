"""One run at a time in a folder: refused, taken over, given back."""

import json
import os
import subprocess
import sys
import threading
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
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and listed still
    for collect in (lambda: None, process.wait):
        collect()
        ours = lock_of(tmp_path)
        ours.acquire(lambda text: None)
        ours.release()
        assert dead._create()


def test_a_process_that_only_has_the_same_number_is_not_waited_for(tmp_path):
    assert lock_of(tmp_path)._create()
    change(tmp_path, process="12345")  # it began at another time
    said, ours = [], lock_of(tmp_path)
    began = time.monotonic()
    ours.acquire(said.append)
    assert time.monotonic() - began < STALE / 2
    assert len(said) == 1 and "has died" in said[0]
    ours.release()


@pytest.mark.parametrize(("beat", "seconds"), [(0.26, 1.3), (0, 1), (3600, 1)])
def test_a_slow_beat_is_waited_for_and_an_impossible_one_is_not(tmp_path, beat, seconds):
    """Five of the other's beats, at least the seconds of this run."""
    assert lock_of(tmp_path)._create()
    change(tmp_path, space="other", beat_seconds=beat)
    said, ours = [], lock_of(tmp_path)
    began = time.monotonic()
    ours.acquire(said.append)
    assert f"waiting up to {seconds:g} s" in said[0]
    assert seconds <= time.monotonic() - began < seconds + 3
    ours.release()


def test_a_lock_that_goes_while_it_is_watched_is_free(tmp_path):
    assert lock_of(tmp_path)._create()
    change(tmp_path, space="other", beat_seconds=60)
    threading.Timer(0.3, (tmp_path / NAME).unlink).start()
    said, ours = [], lock_of(tmp_path)
    ours.acquire(said.append)
    assert len(said) == 1 and "waiting up to 300 s" in said[0]
    ours.release()
    assert os.listdir(tmp_path) == []


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


def test_a_beat_in_hand_does_not_bring_back_a_lock_that_was_released(tmp_path, monkeypatch):
    beating, replace = threading.Event(), os.replace

    def slowly(*paths):
        beating.set()
        time.sleep(0.3)
        replace(*paths)

    ours = lock_of(tmp_path)
    ours.acquire()
    assert ours._thread.daemon
    monkeypatch.setattr(os, "replace", slowly)
    assert beating.wait(10)
    ours.release()
    assert not ours._thread.is_alive() and os.listdir(tmp_path) == []


def test_a_folder_is_held_for_a_block_however_it_ends(tmp_path):
    with pytest.raises(KeyError), run_lock.held(tmp_path, stale_seconds=STALE, say=print):
        assert os.listdir(tmp_path) == [NAME]
        raise KeyError("a run that fails")
    assert os.listdir(tmp_path) == []
    with run_lock.held(tmp_path, stale_seconds=0.0, say=print):
        assert os.listdir(tmp_path) == []


def test_a_run_whose_folder_was_taken_over_says_so_and_ends_all_ranks(tmp_path, monkeypatch):
    said, ended = [], []
    monkeypatch.setattr(run_lock.guard, "say_error", said.append)
    monkeypatch.setattr(run_lock.distributed, "abort_all", ended.append)
    with run_lock.held(tmp_path, stale_seconds=STALE, say=print):
        change(tmp_path, token="another")
        wait_until(lambda: ended, lambda: "it never ended", seconds=10)
    assert ended == [1] and "this one ends" in said[0]
    assert os.listdir(tmp_path) == [NAME]
