"""Log files: DLLogger's lines and keys, JSON lines, TensorBoard, and silence on other ranks."""

import json
import math
import os
import re
import resource
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from left_by_runs import recorded, time_log
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from engine.log import run_log
from engine.log.run_log import RunLog, open_dllogger
from engine.ranks import distributed
from outside_data.system_errors import explained


def test_dllogger_lines(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    log.dll("PARAMETER", {"Latency": "0.5200 seconds", "fps": 12.5, "steps": (4, 5)})
    log.dll([], {"epoch": 3, "validation_accuracy_mAP": 34.56})
    log.flush()
    records = time_log(tmp_path)
    for record in records:
        assert float(record["timestamp"]) > 1e9 and float(record["elapsedtime"]) >= 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", record["datetime"])
        assert isinstance(record["timestamp"], str) and isinstance(record["elapsedtime"], str)
    units = {r["metric"]: r["metadata"]["unit"] for r in records if r["type"] == "METADATA"}
    assert units == {
        "avg_fps_training": "images/s",
        "avg_fps_training_per_GPU": "images/s",
        "avg_latency_training": "s",
        "training_loss": None,
        "e2e_training_time": "s",
    }
    parameter, scores = (r for r in records if r["type"] == "LOG")
    assert parameter["step"] == "PARAMETER"
    assert parameter["data"] == {"Latency": "0.5200 seconds", "fps": 12.5, "steps": [4, 5]}
    assert scores["step"] == []
    assert scores["data"] == {"epoch": 3, "validation_accuracy_mAP": 34.56}


def test_a_second_run_appends(tmp_path):
    for number in (1, 2):
        log = RunLog(tmp_path, tensorboard=False)
        log.dll([], {"run": number})
        log.numbers("end", {"run": number})
        log.flush()
    assert [r["data"]["run"] for r in time_log(tmp_path) if r["type"] == "LOG"] == [1, 2]
    assert [record["run"] for record in recorded(tmp_path, "end")] == [1, 2]


def test_numbers_json_cannot_hold(tmp_path):
    log = RunLog(tmp_path, tensorboard=False)
    log.numbers("step", {"loss": 1.5, "gradient_norm": float("inf"), "other": float("nan")})
    log.dll([], {"training_loss": float("nan")})
    log.flush()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["kind"], line["loss"]) == ("step", 1.5)
    assert line["gradient_norm"] is line["other"] is None
    assert time_log(tmp_path)[-1]["data"] == {"training_loss": None}


def test_text_goes_to_console_and_file(tmp_path, capsys):
    log = RunLog(tmp_path, tensorboard=False)
    log.info("hello")
    log.warn("mind")
    said = capsys.readouterr().out
    assert re.search(r"\d\d:\d\d:\d\d hello\n.* WARNING: mind\n", said)
    (path,) = tmp_path.glob("train-*.log")
    assert re.fullmatch(r"train-\d{4}(-\d\d){5}\.log", path.name)
    assert path.read_text() == said


@pytest.mark.parametrize("name", ["metrics.jsonl", "time_log.txt"])
def test_a_full_disk_is_told_by_the_file(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        log = RunLog(tmp_path, tensorboard=False)
        log.numbers("step", {"loss": 1.5})
    assert explained(caught.value).startswith(f"{tmp_path}/{name}: No space left on device: free")


def test_a_console_that_is_gone_ends_nothing(tmp_path, monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as console:
        monkeypatch.setattr(sys, "stdout", console)
        log = RunLog(tmp_path, tensorboard=False)
        log.info("heard")
        os.close(reading)
        log.info("first")
        log.info("second")
        log.flush()
    (path,) = tmp_path.glob("train-*.log")
    said = re.sub(r"(?m)^\d\d:\d\d:\d\d ", "", path.read_text()).splitlines()
    assert said[:2] == ["heard", "first"] and said[3:] == ["second"]
    assert "the console is gone" in said[2] and "Broken pipe" in said[2]


def test_tensorboard_reads_scalars_and_pictures(tmp_path):
    picture = tmp_path / "worst.jpg"
    picture.write_bytes(tf.io.encode_jpeg(np.zeros([3, 5, 3], np.uint8)).numpy())
    for step in (3, 4):  # a resumed run writes a file of its own
        log = RunLog(tmp_path)
        log.scalars(step, {"epoch_loss": step / 2, "examples/sec": math.inf})
        log.pictures(step, {"eval/worst": picture})
        log.flush()
    assert len(list((tmp_path / "train").glob("events.out.tfevents.*"))) == 2
    read = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert read.PluginRunToTagToContent("scalars")["train"].keys() == {"epoch_loss", "examples/sec"}
    found = [(e.step, tf.make_ndarray(e.tensor_proto)) for e in read.Tensors("train", "epoch_loss")]
    assert found == [(3, 1.5), (4, 2.0)]
    assert read.PluginRunToTagToContent("images")["train"].keys() == {"eval/worst"}
    shown = tf.make_ndarray(read.Tensors("train", "eval/worst")[0].tensor_proto)
    assert shown.tolist() == [b"5", b"3", picture.read_bytes()]


def test_tensorboard_keeps_nothing_of_a_step(tmp_path):
    log = RunLog(tmp_path)
    numbers = {f"train/loss_{i}": 0.5 for i in range(8)}

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    for step in range(3500):
        if step == 500:
            before = resident()
        log.scalars(step, numbers)
    assert resident() - before < 5e6  # tf.summary kept 6 kB of a step


def test_other_ranks_say_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "_placement", distributed.Placement(rank=1, size=2))
    log = RunLog(tmp_path)
    log.info("hello")
    log.dll([], {"a": 1})
    log.numbers("step", {})
    log.scalars(1, {"a": 1.0})
    log.flush()
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_used_where_it_is_installed(tmp_path, monkeypatch):
    calls = []
    package = types.SimpleNamespace(
        Verbosity=types.SimpleNamespace(VERBOSE=1),
        JSONStreamBackend=lambda level, path, append: ("json", level, path, append),
        init=lambda backends: calls.append(("init", backends)),
        metadata=lambda metric, metadata: calls.append(("metadata", metric, metadata)),
        log=lambda step, data: calls.append(("log", step, data)),
        flush=lambda: calls.append(("flush",)),
    )
    monkeypatch.setattr(run_log, "dllogger", package)
    log = open_dllogger(tmp_path / "x.txt")
    log.metadata("loss", {"unit": None})
    log.log(step=[], data={"a": 1})
    log.flush()
    assert calls == [
        ("init", [("json", 1, str(tmp_path / "x.txt"), True)]),
        ("metadata", "loss", {"unit": None}),
        ("log", [], {"a": 1}),
        ("flush",),
    ]
