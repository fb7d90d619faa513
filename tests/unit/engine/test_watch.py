"""Who is named when a rank freezes or stands still: watches of several ranks in one process."""

import dataclasses
import os
import socket
import time

import pytest
from waiting import wait_until

from engine.ranks import distributed
from engine.ranks import watch as ranks_watch
from engine.ranks.progress import COMPILE, EVALUATE, SAVE, STEP, Progress
from engine.ranks.watch import Limits, Watch, own_addresses

HOSTS = ["node1", "node1", "node2"]
# A thread of a busy machine may not run for a second: shorter than that no rank is silent.
LIMITS = Limits(heartbeat=1.5, step=2.0, compile=30.0, evaluate=30.0)


class Ranks:
    """Three watches that talk through real sockets; what each is ended by is in `reasons`."""

    def __init__(self):
        self.reasons: dict[int, list[str]] = {rank: [] for rank in range(3)}
        self.places = [Progress() for _ in HOSTS]
        self.watches = [
            Watch(
                LIMITS,
                rank=rank,
                hosts=HOSTS,
                here=self.places[rank],
                end=self.reasons[rank].append,
            )
            for rank in range(3)
        ]
        for place in self.places:
            place.at("step 0")
        meeting = self.watches[0].listen()
        # Rank 0 listens on addresses of IPv4 only: the first is refused, the last works anywhere.
        meeting["addresses"] = ["::1", *meeting["addresses"], "127.0.0.1"]
        assert all(watch.connect(meeting) for watch in self.watches[1:])
        self.meeting = meeting
        for watch in self.watches:
            watch.start()

    def run(self, seconds: float, *, stepping: tuple[int, ...] = (0, 1, 2)) -> None:
        """Lets time pass while some ranks come from step to step."""
        end, step = time.monotonic() + seconds, 0
        while time.monotonic() < end and not any(self.reasons.values()):
            step += 1
            for rank in stepping:
                self.places[rank].at(f"step {step}")
            time.sleep(0.05)

    def close(self) -> None:
        for watch in self.watches:
            watch.close()


@pytest.fixture
def ranks():
    made = Ranks()
    yield made
    made.close()


def test_nobody_is_named_while_all_go_on_or_have_ended(ranks):
    ranks.run(2.2)
    ranks.watches[2].close()
    ranks.run(2.2, stepping=(0, 1))
    assert not any(ranks.reasons.values())


def test_a_silent_rank_is_named_with_its_place(ranks):
    ranks.run(1.0)
    ranks.watches[2]._lines[0].send = lambda message: None  # it is stopped
    ranks.run(5.0)
    (reason,) = ranks.reasons[0]
    assert reason.startswith("rank 2 of 3 on node2 is frozen or cut off: no sign of life for 1.5 s")
    assert "(--heartbeat_seconds); last seen at: step" in reason
    told = wait_until(lambda: ranks.reasons[1], lambda: "the others are not told to end", seconds=5)
    assert told == [""]


def test_a_rank_that_vanishes_is_named(ranks):
    ranks.run(1.0)
    line = ranks.watches[1]._lines[0]
    line.send = lambda message: None
    line.connection.shutdown(socket.SHUT_RDWR)
    ranks.run(5.0)
    assert ranks.reasons[0][0].startswith("rank 1 of 3 on node1 is frozen or cut off")


def test_the_others_name_rank_0(ranks):
    ranks.run(1.0)
    for line in ranks.watches[0]._lines:
        line.send = lambda message: None
    ranks.run(5.0)
    for rank in (1, 2):
        reasons = ranks.reasons[rank]
        wait_until(lambda: reasons, lambda: "nobody is named", seconds=5)  # noqa: B023
        assert reasons[0].startswith("rank 0 of 3 on node1 is frozen or cut off")


def test_the_rank_that_the_others_wait_for_is_named(ranks):
    ranks.run(0.3)
    for rank in (0, 2):
        ranks.places[rank].at("step 100")
        ranks.places[rank].at("step 101")
    ranks.places[1].at("reading the batches of step 101")
    ranks.run(5.0, stepping=())
    assert ranks.reasons[0] == [
        "rank 1 of 3 on node1 stands still for 2 s (--stall_seconds) at: reading the batches of "
        "step 101; the other ranks wait for it"
    ]


def test_a_collective_in_which_all_hang_is_told_as_such(ranks):
    ranks.run(0.3)
    ranks.run(5.0, stepping=())
    assert ranks.reasons[0][0].startswith("every rank stands still for 2 s (--stall_seconds) at:")


@pytest.mark.parametrize("kind", [COMPILE, EVALUATE, SAVE])
def test_work_that_takes_long_has_limits_of_its_own(ranks, kind):
    for place in ranks.places:
        place.at("long work", kind)
    ranks.run(2.6, stepping=())
    assert not any(ranks.reasons.values())


@pytest.mark.parametrize(
    ("limits", "kinds", "seconds", "reason"),
    [
        ({}, (STEP, COMPILE, STEP), 29, ""),  # ranks compile when a batch wants it
        ({}, (STEP, COMPILE, STEP), 31, "every rank stands still for 30 s (--compile_seconds)"),
        ({"step": 0.0}, (STEP, STEP, STEP), 1e6, ""),
        ({"compile": 0.0}, (COMPILE, STEP, STEP), 1e6, ""),
        (
            {},
            (STEP, STEP, None),
            3,
            "rank 0 of 3 on node1, rank 1 of 3 on node1 stands still for 2 s (--stall_seconds) at: "
            "work; never heard: rank 2 of 3 on node2",
        ),
    ],
)
def test_the_longest_limit_of_those_waited_for_counts(limits, kinds, seconds, reason):
    limits = dataclasses.replace(LIMITS, **limits)
    watch = Watch(limits, rank=0, hosts=HOSTS, here=Progress(), end=pytest.fail)
    for peer, kind in zip(watch._peers, kinds):
        if kind:
            peer.hear({"count": 1, "ticks": 0, "text": "work", "kind": kind}, 0.0)
            peer.heard = seconds
    assert watch._find_reason(seconds).startswith(reason)
    assert bool(watch._find_reason(seconds)) == bool(reason)


def test_work_that_goes_on_at_one_place_is_no_standstill(ranks):
    for place in ranks.places:
        place.at("many batches")
    for _ in range(45):
        ranks.places[1].tick()
        time.sleep(0.07)
    assert not any(ranks.reasons.values())


@pytest.mark.parametrize(("kind", "seconds"), [(COMPILE, 7.5), (EVALUATE, 7.5), (SAVE, 1.5)])
def test_a_long_silence_is_borne_where_the_interpreter_may_be_kept(ranks, kind, seconds):
    for place in ranks.places:
        place.at("long work", kind)
    time.sleep(1.0)
    ranks.watches[2]._lines[0].send = lambda message: None
    time.sleep(seconds - 1.5)
    assert not any(ranks.reasons.values())
    ranks.run(5.0, stepping=())
    assert f"no sign of life for {seconds:g} s" in ranks.reasons[0][0]


def test_a_rank_that_does_not_reach_rank_0_knows_it():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        meeting = {"addresses": ["::1", "127.0.0.1"], "port": closed.getsockname()[1], "token": ""}
    watch = Watch(LIMITS, rank=2, hosts=HOSTS, here=Progress(), end=pytest.fail)
    assert not watch.connect(meeting)


def test_a_stranger_is_not_heard(ranks):
    with socket.create_connection(("127.0.0.1", ranks.meeting["port"])) as stranger:
        stranger.sendall(b'{"token": "guess", "rank": 1}\n{"end": true}\n')
        ranks.run(0.6)
        assert stranger.recv(10) in (b"", b'{"place": ')
    assert not any(ranks.reasons.values())


def test_a_process_that_itself_was_stopped_names_nobody(ranks, monkeypatch):
    ranks.run(0.3)
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 100.0)
    ranks.run(0.4)
    assert not any(ranks.reasons.values())


def test_one_process_alone_is_watched_for_standing_still():
    reasons: list[str] = []
    place = Progress()
    watch = Watch(LIMITS, rank=0, hosts=["node1"], here=place, end=reasons.append)
    watch.start()
    place.at("step 3")
    time.sleep(3.0)
    watch.close()
    assert reasons == ["the run stands still for 2 s (--stall_seconds) at: step 3"]


def test_the_end_of_a_run_does_not_wait_for_the_next_beat():
    limits = Limits(heartbeat=60.0, step=60.0, compile=60.0, evaluate=60.0)  # beats each second
    watch = Watch(limits, rank=0, hosts=["node1"], here=Progress(), end=pytest.fail)
    watch.start()
    time.sleep(0.1)
    began = time.monotonic()
    watch.close()
    assert time.monotonic() - began < 0.5 and not watch._thread.is_alive()


def test_own_addresses_are_those_of_this_host():
    for address in own_addresses({"localhost", "no-such-host.invalid"}):
        with socket.create_server((address, 0)):
            pass


@pytest.mark.parametrize(
    ("find_saved", "says"),
    [
        (lambda: "run/ckpt-00000008", "the same command continues from run/ckpt-00000008"),
        (lambda: "", "the same command starts anew, as nothing was saved yet"),
        (lambda: time.sleep(30), "the same command continues from the last checkpoint, if one was"),
        (None, "start the same command again"),
    ],
)
def test_the_end_tells_what_the_same_command_does(monkeypatch, capfd, find_saved, says):
    codes = []
    monkeypatch.setattr(ranks_watch, "_SECONDS_TO_FIND", 0.2)
    monkeypatch.setattr(distributed, "abort_all", codes.append)
    monkeypatch.setattr(os, "_exit", codes.append)
    ranks_watch._end_rank("rank 1 of 2 is frozen", find_saved=find_saved)
    assert codes == [1, 1]
    said = capfd.readouterr().err
    assert f"rank 1 of 2 is frozen. All ranks end; {says}" in said
    assert "stands here:" in said and "_end_rank" in said
