"""The frame around main: exit codes, and what is said of a failure."""

import pytest
import tensorflow as tf

from engine.config.fields import ConfigError
from engine.ranks import distributed
from engine.ranks.guard import as_system_error, run_guarded


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in distributed._SIZE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RINGDET_TRACEBACK", raising=False)
    monkeypatch.setattr(distributed, "_placement", distributed.Placement(host="node7"))


def end_of(action) -> int:
    with pytest.raises(SystemExit) as end:
        run_guarded(action)
    return end.value.code


def raising(error: BaseException):
    def action() -> int:
        raise error

    return action


def test_exit_codes():
    assert end_of(lambda: 0) == 0
    assert end_of(lambda: 75) == 75
    assert end_of(raising(KeyboardInterrupt())) == 130
    assert end_of(raising(SystemExit(3))) == 3


def test_an_explained_error_is_one_line(capsys):
    assert end_of(raising(ConfigError("no such thing: use that"))) == 1
    said = capsys.readouterr().err
    assert said == "ERROR (rank 0 of 1 on node7): ConfigError: no such thing: use that\n"


def test_a_value_error_says_how_to_see_more(capsys, monkeypatch):
    assert end_of(raising(ValueError("bad"))) == 1
    said = capsys.readouterr().err
    assert "ValueError: bad (RINGDET_TRACEBACK=1 shows where)" in said and "Traceback" not in said
    monkeypatch.setenv("RINGDET_TRACEBACK", "1")
    assert end_of(raising(ValueError("bad"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_unforeseen_error_shows_its_stack(capsys):
    assert end_of(raising(TypeError("bug"))) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "TypeError: bug" in said.splitlines()[-1]


def test_what_tensorflow_says_of_a_file_is_the_systems_error(capsys):
    def fill() -> None:
        with tf.io.TFRecordWriter("/dev/full") as file:
            file.write(b"x")
            file.flush()

    assert end_of(fill) == 1
    said = capsys.readouterr().err
    assert "node7): OSError: /dev/full: No space left on device: free some" in said
    assert "Traceback" not in said
    other = tf.errors.ResourceExhaustedError(None, None, "Out of memory")
    assert as_system_error(other) is other


def test_what_rank_0_did_for_all_is_told_by_its_cause(capsys):
    error = distributed.AgreedError("rank 0 failed")
    error.__cause__ = FileNotFoundError("no data at X")
    assert end_of(raising(error)) == 1
    said = capsys.readouterr().err
    assert "FileNotFoundError: no data at X" in said and "Traceback" not in said


def test_a_launched_rank_ends_all_others(monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    ended = []

    def abort(code: int) -> None:
        ended.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(distributed, "abort_all", abort)
    assert end_of(raising(OSError("disk full"))) == 1
    assert ended == [1]
    assert "ERROR (rank 0 of 4 on node7): OSError: disk full" in capsys.readouterr().err
