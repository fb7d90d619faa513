"""Signs of life of long work."""

import threading

import pytest

from engine.log import meanwhile


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(meanwhile, "_EVERY_SECONDS", 0.001)


def test_it_is_said_again_and_again_until_the_end(hurried):
    said, third = [], threading.Event()

    def say(line):
        said.append(line)
        if len(said) == 3:
            third.set()

    with meanwhile.said_meanwhile(say, "compiling"):
        assert third.wait(30)
    count = len(said)
    assert set(said) == {"still compiling after 0s"}
    threading.Event().wait(0.02)
    assert len(said) == count


def test_what_is_over_soon_says_nothing():
    said = []
    with meanwhile.said_meanwhile(said.append, "compiling"):
        pass
    assert said == []


def test_a_lost_console_ends_the_signs_and_not_the_work(hurried):
    tried = threading.Event()

    def say(line):
        tried.set()
        raise BrokenPipeError

    with meanwhile.said_meanwhile(say, "compiling"):
        assert tried.wait(30)


def test_an_error_of_the_work_comes_through(hurried):
    with pytest.raises(RuntimeError), meanwhile.said_meanwhile(print, "compiling"):
        raise RuntimeError
