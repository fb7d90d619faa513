"""One run at a time in a folder: a lock file with a heartbeat, made and kept by rank 0.

The file is created exclusively, which NFS does too, and rewritten every few seconds with a counter.
Who finds it there watches the counter by its own clock: clocks of hosts and times of files do not
matter. A counter that stands still is that of a run that died; on the same host its process is
asked for.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.config.fields import ConfigError
from engine.log.meters import format_duration
from engine.ranks import distributed, guard
from outside_data.files import BadFileError, read_json
from outside_data.text import clean

NAME = "run.lock"
_BEATS_UNTIL_STALE = 5
_FAILED = 1
_MOST_BYTES, _MOST_BEAT_SECONDS = 1 << 16, 3600.0
_TYPES = {
    **dict.fromkeys(("host", "process", "space", "started", "token"), str),
    **{"pid": int, "beats": int},
    **dict.fromkeys(("beat_seconds", "age_seconds"), (int, float)),
}


class RunLock:
    """The lock of one folder.

    Args:
      folder: what is locked.
      stale_seconds: a run that gives no sign of life for so long is taken for dead.
      on_lost: called with the reason, from a thread, when another run has taken the lock over.
    """

    def __init__(self, folder: Path, *, stale_seconds: float, on_lost: Callable[[str], Any]):
        self.path = folder / NAME
        self._stale_seconds, self._on_lost = stale_seconds, on_lost
        self._beat_seconds = stale_seconds / _BEATS_UNTIL_STALE
        self._began = time.monotonic()
        self._content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": _process(os.getpid()),
            "space": _process_space(),
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "beat_seconds": self._beat_seconds,
            "token": secrets.token_hex(8),
        }
        self._aside = folder / f".{NAME}-{self._content['token']}"
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="run lock", daemon=True)

    def acquire(self, say: Callable[[str], Any] = print) -> None:
        """Takes the lock; waits only where a dead run's has to be told from a living one's.

        Raises:
          ConfigError: another run has it; names host, process, start and age.
        """
        while not self._create():
            other = _read(self.path)
            if other and _is_here(other):
                if _process(other["pid"]) == other["process"]:
                    raise ConfigError(self._refusal(other))
            else:
                say(
                    f"{self.path} is that of {_named(other)}: waiting up to "
                    f"{self._patience(other):g} s for a sign of life (--lock_seconds)"
                )
                self._require_silence(other)
            if self._take_away(other):
                say(f"{_named(other)} has died in {self.path.parent}: its lock is taken over")
        self._thread.start()

    def release(self) -> None:
        """Gives the lock back, if it still is ours."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(self._beat_seconds + 1)
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink()

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(self._text(0))
        return True

    def _text(self, beats: int) -> str:
        age = round(time.monotonic() - self._began, 1)
        return json.dumps({**self._content, "beats": beats, "age_seconds": age})

    def _patience(self, other: Mapping[str, Any]) -> float:
        beat = other.get("beat_seconds", self._beat_seconds)
        return max(self._stale_seconds, _BEATS_UNTIL_STALE * beat)

    def _require_silence(self, other: Mapping[str, Any]) -> None:
        end = time.monotonic() + self._patience(other)
        while time.monotonic() < end:
            time.sleep(min(1.0, self._beat_seconds))
            now = _read(self.path)
            if now != other:
                if now:
                    raise ConfigError(self._refusal(now))
                return  # it has just ended

    def _refusal(self, other: Mapping[str, Any]) -> str:
        return (
            f"{self.path.parent} is in use by {_named(other)}: wait for its end, end it, or choose "
            "another --model_dir"
        )

    def _take_away(self, other: Mapping[str, Any]) -> bool:
        """Removes a dead run's lock; False if someone else was faster."""
        try:
            os.rename(self.path, self._aside)  # one of several that try succeeds
        except FileNotFoundError:
            return False
        if _read(self._aside) != other:  # that was a new one
            with contextlib.suppress(OSError):
                os.link(self._aside, self.path)
            self._aside.unlink()
            return False
        self._aside.unlink()
        return True

    def _is_ours(self) -> bool:
        return _read(self.path).get("token") == self._content["token"]

    def _keep(self) -> None:
        beats = 0
        while not self._released.wait(self._beat_seconds):
            beats += 1
            with contextlib.suppress(OSError):  # a full disk; a folder that is gone is the log's
                other = _read(self.path)
                if other and other.get("token") != self._content["token"]:
                    self._on_lost(
                        f"{_named(other)} has taken {self.path.parent} over while this run gave no "
                        "sign of life; this one ends and writes nothing more"
                    )
                    return
                self._aside.write_text(self._text(beats), encoding="utf-8")
                os.replace(self._aside, self.path)


@contextlib.contextmanager
def held(folder: Path, *, stale_seconds: float, say: Callable[[str], Any]) -> Iterator[None]:
    """Holds a folder's lock for a block, on all ranks; 0 seconds: nobody asks for it."""
    if not stale_seconds:
        yield
        return
    lock = RunLock(folder, stale_seconds=stale_seconds, on_lost=_leave)
    distributed.on_main(lambda: lock.acquire(say))
    try:
        yield
    finally:
        if distributed.is_main():
            lock.release()


def _leave(reason: str) -> None:
    guard.say_error(reason)
    distributed.abort_all(_FAILED)


def _read(path: Path) -> dict[str, Any]:
    """Returns what a lock says; {} for none, and for one that is being written or is damaged."""
    try:
        found = read_json(path, most=_MOST_BYTES)
    except (BadFileError, OSError):
        return {}
    if not isinstance(found, dict):
        return {}
    is_sound = all(isinstance(found.get(name), kind) for name, kind in _TYPES.items())
    return found if is_sound and 0 < found["beat_seconds"] < _MOST_BEAT_SECONDS else {}


def _named(other: Mapping[str, Any]) -> str:
    if not other:
        return "another run"
    age = format_duration(min(other["age_seconds"], 1e9))
    return (
        f"another run (host {clean(other['host'])}, process {other['pid']}, started "
        f"{clean(other['started'])}, running for {age})"
    )


def _is_here(other: Mapping[str, Any]) -> bool:
    """True if the lock's process is or was among those of this host that we can see."""
    return bool(other["space"]) and other["space"] == _process_space()


def _process_space() -> str:
    """Returns what is the same only for processes that see each other's ids, '' if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process(pid: int) -> str:
    """Returns what tells a process from a later one of the same id; '' where there is none."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
