"""A thread beside each rank's main thread that ends the job when a rank freezes or stands still.

Every rank tells rank 0 about once a second where it is, over a TCP connection of its own, and rank
0 answers. Neither MPI nor Horovod nor a file system takes part, as these are what hangs; nor does
any clock but one's own. Two things end the job:

    no sign of life    a rank was not heard for `heartbeat_seconds`: frozen, or its host is gone.
                       Rank 0 notices it of the others, each of the others of rank 0.
    no progress        the rank that the others wait for (`engine.ranks.progress`) has been at one
                       place for longer than that kind of work may take.

All ranks that still can then show where they stand, and end their processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine.ranks import distributed, guard, progress
from outside_data.text import clean_lines

_FAILED = 1
_MOST_SECONDS_BETWEEN_BEATS = 1.0
_SECONDS_TO_CONNECT = 5.0
# A dead file system may also hold up what is said last, and the orderly end.
_SECONDS_TO_FIND, _SECONDS_TO_SAY, _SECONDS_TO_ABORT = 2.0, 5.0, 5.0
# Compiling and scoring may keep the interpreter, and with it the watch, from running for a while.
_KEEPS_THE_INTERPRETER, _PATIENCE = (progress.COMPILE, progress.EVALUATE), 5
# The others show where they stand before rank 0 ends all.
_SECONDS_FOR_STACKS = 1.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds; heartbeat 0 switches the watch off, another 0 that check."""

    heartbeat: float
    step: float
    compile: float
    evaluate: float

    def of(self, kind: str) -> tuple[float, str]:
        """Returns how long a kind of work may stand still, and the flag that says so."""
        return {
            progress.STEP: (self.step, "--stall_seconds"),
            progress.COMPILE: (self.compile, "--compile_seconds"),
            progress.EVALUATE: (self.evaluate, "--evaluation_seconds"),
            progress.SAVE: (self.evaluate, "--evaluation_seconds"),
        }[kind]


@dataclasses.dataclass
class _Peer:
    """A rank as it was last heard. heard, moved: by our own clock."""

    rank: int
    host: str
    heard: float
    moved: float
    place: dict[str, Any] = dataclasses.field(default_factory=dict)
    has_left: bool = False
    # A rank that cannot reach rank 0 is only known by name.
    is_known: bool = False

    def hear(self, place: Mapping[str, Any], now: float) -> None:
        self.heard, self.is_known = now, True
        if place != self.place:
            self.place, self.moved = dict(place), now


class _Line:
    """One TCP connection that carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.peer = connection, -1
        self._received = b""

    def send(self, message: Mapping[str, Any]) -> None:
        # A peer that reads nothing fills its buffer: what does not fit is lost with it.
        with contextlib.suppress(OSError):
            self.connection.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Returns what came; None when the other end is closed."""
        try:
            data = self.connection.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        if not data or len(self._received) > 1 << 16:
            return None
        try:
            return [dict(json.loads(line)) for line in lines]
        except (TypeError, ValueError):  # not one of us
            return None


class Watch:
    """The watch of one rank; `start` it on every rank.

    Args:
      limits: see `Limits`.
      rank, hosts: this rank, and the host of every rank.
      here: where this rank is.
      end: called from the watch's thread with the reason, or with '' on a rank that was told to
        end; does not return in a real run.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        rank: int,
        hosts: list[str],
        here: progress.Progress,
        end: Callable[[str], None],
    ):
        now = time.monotonic()
        self._limits, self._rank, self._here, self._end = limits, rank, here, end
        self._peers = [_Peer(i, host, now, now) for i, host in enumerate(hosts)]
        self._interval = min(limits.heartbeat / 5.0, _MOST_SECONDS_BETWEEN_BEATS)
        self._selector = selectors.DefaultSelector()
        self._lines: list[_Line] = []
        self._wake, self._woken = socket.socketpair()  # closing the one ends the other's wait
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._token = secrets.token_hex(16)
        self._closing = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def listen(self) -> dict[str, Any]:
        """Opens rank 0's port; returns where and with which word the others find it."""
        self._listener = socket.create_server(("", 0), backlog=len(self._peers))
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        hosts = {peer.host for peer in self._peers} - {self._peers[0].host}
        return {
            "addresses": own_addresses(hosts),
            "port": self._listener.getsockname()[1],
            "token": self._token,
        }

    def connect(self, meeting: Mapping[str, Any]) -> bool:
        """Finds rank 0; returns False if it cannot be reached."""
        is_same_host = self._peers[self._rank].host == self._peers[0].host
        addresses = ["127.0.0.1", *meeting["addresses"]] if is_same_host else meeting["addresses"]
        for address in addresses:
            try:
                connection = socket.create_connection(
                    (address, meeting["port"]), timeout=_SECONDS_TO_CONNECT
                )
            except OSError:
                continue
            line = _Line(connection)
            line.peer = 0
            line.send({"token": meeting["token"], "rank": self._rank})
            self._add(line)
            return True
        return False

    def start(self) -> None:
        """Begins to watch."""
        now = time.monotonic()
        for peer in self._peers:
            peer.heard = peer.moved = now
        self._peers[0].is_known = bool(self._lines) or self._rank == 0
        self._thread.start()

    def close(self) -> None:
        """Ends the watch; the other ranks go on without this one."""
        self._closing.set()
        self._wake.close()
        if self._thread.is_alive():
            self._thread.join(5 * self._interval + 1)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        last = time.monotonic()
        while not self._closing.is_set() and not self._ended:
            for key, _ in self._selector.select(self._interval):
                if key.data is not None:
                    self._read(key.data)
                elif key.fileobj is not self._woken:
                    self._accept()
            now = time.monotonic()
            if now - last < self._interval:
                continue
            if now - last > self._limits.heartbeat / 2:
                # It was this process that did not run: what it did not hear says nothing.
                for peer in self._peers:
                    peer.heard = peer.moved = now
            last = now
            mine = self._here.place()
            self._peers[self._rank].hear(mine, now)
            for line in self._lines:
                line.send({"place": mine})
            if reason := self._find_reason(now):
                self._finish(reason)
        for line in self._lines:
            if not self._ended:
                line.send({"bye": True})
            line.connection.close()
        self._selector.close()
        self._woken.close()
        if hasattr(self, "_listener"):
            self._listener.close()

    def _add(self, line: _Line) -> None:
        self._lines.append(line)
        self._selector.register(line.connection, selectors.EVENT_READ, line)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            self._add(_Line(self._listener.accept()[0]))

    def _read(self, line: _Line) -> None:
        messages = line.receive()
        if messages is None:
            self._drop(line)
            return
        for message in messages:
            if line.peer < 0:
                known = message.get("token") == self._token
                if not known or message.get("rank") not in range(1, len(self._peers)):
                    self._drop(line)
                    return
                line.peer = message["rank"]
            peer = self._peers[line.peer]
            if "place" in message:
                peer.hear(message["place"], time.monotonic())
            peer.has_left = peer.has_left or "bye" in message
            if "end" in message and not self._ended:
                self._ended = True
                self._end("")

    def _drop(self, line: _Line) -> None:
        self._selector.unregister(line.connection)
        line.connection.close()
        self._lines.remove(line)

    def _finish(self, reason: str) -> None:
        self._ended = True
        for line in self._lines:
            line.send({"end": True})
        self._end(reason)

    # ------------------------------------------------------------------ the judgement

    def _find_reason(self, now: float) -> str:
        """Returns why the job must end, or ''."""
        watched = self._peers if self._rank == 0 else [self._peers[0]]
        watched = [peer for peer in watched if peer.is_known and not peer.has_left]
        for peer in watched:
            silence = self._limits.heartbeat
            if peer.place.get("kind", progress.COMPILE) in _KEEPS_THE_INTERPRETER:
                silence *= _PATIENCE
            if peer.rank != self._rank and now - peer.heard > silence:
                return (
                    f"{self._name(peer)} is frozen or cut off: no sign of life for "
                    f"{silence:g} s (--heartbeat_seconds); last seen at: "
                    f"{peer.place.get('text', 'starting')}"
                )
        if self._rank != 0:
            return ""
        places = [peer for peer in watched if peer.place]
        least = min(peer.place["count"] for peer in places)
        late = [peer for peer in places if peer.place["count"] == least]
        # Ranks may differ in what they compile when.
        kinds = [self._limits.of(peer.place["kind"]) for peer in late]
        limit, flag = max(kinds, key=lambda kind: kind[0] or math.inf)
        if not limit or any(now - peer.moved <= limit for peer in late):
            return ""
        who = "every rank" if len(late) == len(self._peers) else ", ".join(map(self._name, late))
        if len(self._peers) == 1:
            who = "the run"
        others = "" if len(late) == len(places) else "; the other ranks wait for it"
        unheard = [self._name(peer) for peer in self._peers if not peer.is_known]
        others += f"; never heard: {', '.join(unheard)}" if unheard else ""
        return f"{who} stands still for {limit:g} s ({flag}) at: {late[0].place['text']}{others}"

    def _name(self, peer: _Peer) -> str:
        return f"rank {peer.rank} of {len(self._peers)} on {peer.host}"


def own_addresses(others: set[str]) -> list[str]:
    """Returns the addresses of this host, first those from which it speaks to the other hosts."""
    found = []
    for host in sorted(others):
        # Nothing is sent: connecting a datagram socket only picks the interface.
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            found.append(probe.getsockname()[0])
    with contextlib.suppress(OSError):
        found += socket.gethostbyname_ex(socket.gethostname())[2]
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def watching(limits: Limits, find_saved: Callable[[], str] | None = None) -> Iterator[None]:
    """Watches all ranks for a block; collective at its beginning.

    Args:
      limits: see `Limits`.
      find_saved: returns the checkpoint from which the same command continues, '' if there is none
        yet; None where nothing is ever saved.
    """
    progress.HERE.at("starting", progress.COMPILE)
    if not limits.heartbeat:
        yield
        return
    place = distributed.placement()
    hosts = distributed.all_gather_object(place.host)
    end = functools.partial(_end_rank, find_saved=find_saved)
    watch = Watch(limits, rank=place.rank, hosts=hosts, here=progress.HERE, end=end)
    if place.size > 1:
        meeting = distributed.on_main(watch.listen)
        reached = place.rank == 0 or watch.connect(meeting)
        unreached = [
            r for r, found in enumerate(distributed.all_gather_object(reached)) if not found
        ]
        if unreached and place.rank == 0:
            print(
                f"WARNING: rank(s) {unreached} cannot connect to {meeting['addresses']} port "
                f"{meeting['port']} on rank 0; nobody notices if they freeze",
                file=sys.stderr,
                flush=True,
            )
    watch.start()
    try:
        yield
    finally:
        watch.close()


def _end_rank(reason: str, *, find_saved: Callable[[], str] | None) -> None:
    """Ends this process, whatever its main thread is in."""

    def say() -> None:
        place = distributed.placement()
        if reason:
            guard.say_error(f"{reason}. All ranks end; {_continuation(find_saved)}")
        stack = sys._current_frames()[threading.main_thread().ident]
        lines = "".join(traceback.format_stack(stack))
        where = f"rank {place.rank} of {place.size} on {place.host} stands here:\n{lines}"
        print(clean_lines(where), file=sys.stderr, flush=True)

    _try_for(_SECONDS_TO_SAY, say)
    if reason:
        time.sleep(_SECONDS_FOR_STACKS)
        _try_for(_SECONDS_TO_ABORT, lambda: distributed.abort_all(_FAILED))
    else:
        # The rank that gave the reason ends first, so that the launcher tells that reason.
        time.sleep(_SECONDS_FOR_STACKS + _SECONDS_TO_ABORT)
    os._exit(_FAILED)


def _continuation(find_saved: Callable[[], str] | None) -> str:
    """Says what the same command will do.

    The folder is asked, as a rank that hangs in a save's last broadcast has not heard of it.
    """
    if find_saved is None:
        return "start the same command again"
    found = []
    _try_for(_SECONDS_TO_FIND, lambda: found.append(find_saved()))
    if not found:
        return "the same command continues from the last checkpoint, if one was saved"
    if not found[0]:
        return "the same command starts anew, as nothing was saved yet"
    return f"the same command continues from {found[0]}"


def _try_for(seconds: float, action: Callable[[], Any]) -> None:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)
