"""Batches prepared and numbers read beside the steps, by threads."""

import functools
import threading

import pytest
import tensorflow as tf

from engine import batches as ahead
from engine.ranks import devices


@pytest.fixture
def as_accelerator(monkeypatch):
    """Takes the CPU for an accelerator."""
    monkeypatch.setattr(devices, "accelerator", lambda: "CPU:0")


@pytest.fixture
def callers(monkeypatch):
    """The threads' owners that a test makes."""
    made = []

    class Noted(ahead.Caller):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(ahead, "Caller", Noted)
    return made


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_all_batches_come_in_their_order(count):
    found = list(ahead.prepared_ahead(range(4), lambda batch: batch * 10, ahead=count))
    assert found == [(0, 0), (1, 10), (2, 20), (3, 30)]


def test_so_many_are_prepared_before_they_are_taken():
    prepared = []
    arrived = threading.Semaphore(0)

    def prepare(batch):
        prepared.append((batch, threading.current_thread() is threading.main_thread()))
        arrived.release()
        return batch

    batches = ahead.prepared_ahead(iter(range(100)), prepare, ahead=2)
    assert next(batches) == (0, 0)
    for _ in range(3):
        assert arrived.acquire(timeout=30)
    assert sorted(prepared) == [(0, False), (1, False), (2, False)]
    batches.close()
    assert len(prepared) == 3


def test_a_slow_batch_holds_up_no_other():
    others = threading.Semaphore(0)

    def prepare(batch):
        if batch == 0:
            # Ends when the next two are prepared, which wait for nothing.
            assert all(others.acquire(timeout=30) for _ in range(2))
        else:
            others.release()
        return batch

    batches = ahead.prepared_ahead(iter(range(100)), prepare, ahead=2)
    assert [next(batches) for _ in range(4)] == [(i, i) for i in range(4)]
    batches.close()


def test_without_threads_none_is_prepared_before():
    prepared = []
    batches = ahead.prepared_ahead(iter(range(100)), prepared.append, ahead=0)
    next(batches)
    assert prepared == [0]


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("place", ["reading", "preparing"])
def test_an_error_comes_where_its_batch_would(count, place):
    def read():
        yield 1
        if place == "reading":
            raise ValueError("the file ends early")
        yield 2

    def prepare(batch):
        if batch == 2:
            raise ValueError("the file ends early")
        return batch

    batches = ahead.prepared_ahead(read(), prepare, ahead=count)
    assert next(batches) == (1, 1)
    with pytest.raises(ValueError, match="the file ends early"):
        next(batches)


def test_a_reader_that_hangs_does_not_keep_the_run_from_ending(callers, monkeypatch):
    monkeypatch.setattr(ahead, "_CLOSING_SECONDS", 0.01)
    never = threading.Event()

    def read():
        yield 1
        never.wait(60)

    batches = ahead.prepared_ahead(read(), lambda batch: batch, ahead=2)
    assert next(batches) == (1, 1)
    thread = callers[0]._thread
    batches.close()
    assert thread.is_alive() and thread.daemon  # Python waits for no such thread
    never.set()
    thread.join(30)
    assert not thread.is_alive()


def test_a_thread_leaves_out_what_is_cancelled_and_makes_the_other_calls():
    caller, made, begin = ahead.Caller(), [], threading.Event()
    first = caller.submit(lambda: begin.wait(30))
    second, third = (caller.submit(functools.partial(made.append, name)) for name in "ab")
    fourth = caller.submit(lambda: len(made))
    assert second.cancel()
    begin.set()
    caller.close()
    assert first.result() is True and third.done() and fourth.result() == 1
    assert made == ["b"] and not caller._thread.is_alive()


@pytest.mark.parametrize("error", [GeneratorExit, KeyboardInterrupt])
def test_closing_prepares_no_batch_that_is_not_begun(callers, error):
    """Neither where a run ends early nor where an error ends it; and the threads end."""
    begun, arrived, go_on = [], threading.Semaphore(0), threading.Event()

    def prepare(batch):
        begun.append(batch)
        arrived.release()
        return batch == 0 or go_on.wait(30)

    batches = ahead.prepared_ahead(range(9), prepare, ahead=3)
    assert next(batches) == (0, True)
    for _ in range(4):
        assert arrived.acquire(timeout=30)
    threading.Timer(0.2, go_on.set).start()
    with pytest.raises(error):
        batches.throw(error)
    assert not any(caller._thread.is_alive() for caller in callers)
    assert sorted(begun) == [0, 1, 2, 3]


def test_an_ended_source_is_asked_no_more_and_its_thread_ends(callers):
    asked = []

    def read():
        yield from range(3)
        asked.append("the end")

    batches = ahead.prepared_ahead(read(), lambda batch: -batch, ahead=2)
    assert list(batches) == [(0, 0), (1, -1), (2, -2)]
    assert asked == ["the end"]
    assert callers and not any(caller._thread.is_alive() for caller in callers)


def test_whatever_a_call_raises_is_raised_where_its_result_is_asked_for():
    def leave():
        raise SystemExit(3)

    caller = ahead.Caller()
    left, after = caller.submit(leave), caller.submit(lambda: 7)
    with pytest.raises(SystemExit, match="3"):
        left.result(30)
    assert after.result(30) == 7
    caller.close()


def test_batches_of_an_accelerator_are_the_same_again_in_its_program(as_accelerator):
    batch = {
        "image": tf.constant([[1, 255]], tf.uint8),
        "classes": tf.constant([3, -1, 2**31 - 1], tf.int32),
        "boxes": tf.constant([0.5, 1.5]),
        "is_crowd": tf.constant([True, False]),
    }
    sent = ahead.to_accelerator(batch)
    assert not {tf.int32, tf.bool} & {value.dtype for value in sent.values()}
    again = tf.function(ahead.narrowed, jit_compile=True)(sent)
    assert {k: v.dtype for k, v in again.items()} == {k: v.dtype for k, v in batch.items()}
    for name, value in batch.items():
        assert again[name].numpy().tolist() == value.numpy().tolist()


def test_without_an_accelerator_a_batch_is_left_alone():
    batch = {"classes": tf.constant([3], tf.int32)}
    assert ahead.to_accelerator(batch)["classes"] is batch["classes"]
    taken = []
    batches = ahead.on_accelerator([batch] * 9, lambda b: taken.append(b) or b, per_step=3)
    host, on_device = next(batches)
    assert (host is batch, on_device == batch, len(taken)) == (True, True, 1)


@pytest.mark.parametrize(("per_step", "expected"), [(1, 3), (3, 7)])
def test_the_batches_of_two_steps_are_copied_ahead(as_accelerator, per_step, expected):
    taken = threading.Semaphore(0)
    given = [{"classes": tf.constant([i], tf.int32)} for i in range(20)]
    batches = ahead.on_accelerator(given, lambda b: taken.release() or b, per_step=per_step)
    _, on_device = next(batches)
    assert on_device["classes"].numpy().tolist() == [0]
    for _ in range(expected):
        assert taken.acquire(timeout=30)
    batches.close()
    assert not taken.acquire(blocking=False)


def test_numbers_are_read_by_a_thread_where_there_is_an_accelerator(as_accelerator):
    read = ahead.NumbersReader()
    waiting = [read(tf.constant([float(i)])) for i in range(3)]
    assert [call().tolist() for call in waiting] == [[0.0], [1.0], [2.0]]
    read.close()
    assert not read._caller._thread.is_alive()
