"""Whole runs of the loop on a tiny task: what is written when, resumes, stops, ends."""

import dataclasses
import os
import re
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from engine_loop_run import OPTIM, Run
from engine_tiny_task import TinyTask

from engine.config.settings import EvalConfig
from engine.files.description import read_metadata
from engine.loop import EXIT_DONE, EXIT_STOPPED, RunResult
from engine.ranks import devices


def tensors_of(run: Run) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in run.state.tensors().items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Run, RunResult]:
    """A run of three epochs; not to be changed."""
    run = Run(tmp_path_factory.mktemp("loop") / "unbroken")
    return run, run()


def test_a_whole_run(unbroken):
    run, result = unbroken
    assert (result.exit_code, result.epoch, result.step) == (EXIT_DONE, 3, 18)
    assert run.evaluated == [1, 2, 3]
    assert run.exported == [run.folder / "emackpt-final"]
    assert run.files() == {
        "ckpt-00000006",
        "ckpt-00000012",
        "ckpt-00000018",
        "ckpt-final",
        "ema_weights/emackpt-01",
        "ema_weights/emackpt-02",
        "ema_weights/emackpt-03",
        "ema_weights/emackpt-best",
    }
    steps = run.records("step")
    assert [r["step"] for r in steps] == list(range(1, 19))
    assert [r["epoch"] for r in steps] == [1] * 6 + [2] * 6 + [3] * 6
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert [r["epoch"] for r in run.records("evaluation")] == [1, 2, 3]
    parameters = [r["data"] for r in run.dll() if r["step"] == "PARAMETER"]
    assert [p["steps"] for p in parameters] == [[k, k + 1] for k in range(18)]
    assert all(p["Latency"].endswith(" seconds") for p in parameters)
    *scores, end = [r["data"] for r in run.dll() if r["step"] == []]
    assert [s["epoch"] for s in scores] == [1, 2, 3]
    percent = [round(100 * r["AP"], 2) for r in run.records("evaluation")]
    assert [s["validation_accuracy_mAP"] for s in scores] == percent
    assert set(end) == {
        "avg_fps_training",
        "avg_fps_training_per_GPU",
        "avg_latency_training",
        "training_loss",
        "e2e_training_time",
    }
    (text,) = run.folder.glob("train-*.log")
    said = text.read_text()
    assert "epoch 3/3 step 18/18" in said and "lr 0.0" in said and "done: 18 steps" in said


def test_the_averages_are_what_is_evaluated_and_saved(unbroken):
    run, result = unbroken
    prefix = run.folder / "ema_weights" / "emackpt-03"
    reader = tf.train.load_checkpoint(str(prefix))
    for name, value in run.state.averages().items():
        np.testing.assert_array_equal(reader.get_tensor(f"model/{name}"), value)
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization)
    for variable in task.model.variables:
        variable.assign(reader.get_tensor(f"model/{variable.name.removesuffix(':0')}"))
    errors = np.square(task.model(task.examples["x"]) - task.examples["y"]).sum(axis=1)
    assert result.metrics["AP"] == pytest.approx(1 / (1 + errors.mean()), rel=1e-5)
    assert read_metadata(prefix)["metrics"] == result.metrics


class _FailsToScore(Run):
    def _write_evaluation(self, rows, metrics, epoch) -> list[str]:
        raise ValueError("masks that cannot be scored")


def test_a_scoring_that_fails_costs_no_epoch(unbroken, tmp_path):
    failing = _FailsToScore(tmp_path / "run")
    with pytest.raises(ValueError, match="cannot be scored"):
        failing()
    assert failing.files() == {"ckpt-00000006"}
    continued = Run(tmp_path / "run")
    continued()
    assert continued.evaluated == [1, 2, 3]
    assert tensors_of(continued) == tensors_of(unbroken[0])


def test_logging_every_few_steps_gives_means(unbroken, tmp_path):
    fourth = Run(tmp_path / "fourth", log_steps=4, time_history=True)
    fourth()
    single, means = unbroken[0].records("step"), fourth.records("step")
    assert [r["step"] for r in means] == [4, 8, 12, 16]
    expected = np.mean([r["square_loss"] for r in single[4:8]])
    assert means[1]["square_loss"] == pytest.approx(expected, rel=1e-5)
    parameters = [r["data"]["steps"] for r in fourth.dll() if r["step"] == "PARAMETER"]
    assert parameters == [[0, 4], [4, 8], [8, 12], [12, 16]]


class StopAfter(TinyTask):
    """Sends this process a signal while a step's batch is prepared."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGUSR1):
        super().__init__(batch_norm=tf.keras.layers.BatchNormalization, noise=0.2)
        self._calls, self._step, self._number = 0, step, number

    def device_batch(self, batch):
        if "valid" not in batch:
            self._calls += 1
            if self._calls == self._step:
                os.kill(os.getpid(), self._number)
        return super().device_batch(batch)


@pytest.mark.parametrize("stopped_at", [4, 12, 18])
def test_a_stopped_run_continues_as_if_unbroken(unbroken, tmp_path, stopped_at, capfd):
    whole, expected = unbroken
    first = Run(tmp_path / "broken", task=StopAfter(stopped_at))
    handler = signal.getsignal(signal.SIGUSR1)
    stopped = first()
    assert (stopped.exit_code, stopped.step) == (EXIT_STOPPED, stopped_at)
    assert signal.getsignal(signal.SIGUSR1) is handler
    assert "SIGUSR1: finishing the step" in capfd.readouterr().err
    assert "ckpt-final" not in first.files()
    second = Run(tmp_path / "broken")
    result = second()
    assert result.exit_code == EXIT_DONE
    assert result.metrics == expected.metrics
    assert tensors_of(second) == tensors_of(whole)
    assert first.evaluated + second.evaluated == [1, 2, 3]
    assert second.files() - whole.files() <= {f"ckpt-{stopped_at:08d}"}
    assert [r["loss"] for r in second.records("step")] == [r["loss"] for r in whole.records("step")]


def test_threads_beside_the_steps_change_nothing(unbroken, tmp_path, monkeypatch):
    whole, expected = unbroken
    before = threading.active_count()
    with monkeypatch.context() as accelerated:
        accelerated.setattr(devices, "accelerator", lambda: "CPU:0")
        accelerated.setattr(devices, "peak_memory_bytes", lambda: 0)
        run = Run(tmp_path / "run")
        result = run()
    assert threading.active_count() <= before
    assert result.metrics == expected.metrics
    assert tensors_of(run) == tensors_of(whole)
    assert [r["loss"] for r in run.records("step")] == [r["loss"] for r in whole.records("step")]


def test_a_finished_run_started_again_only_writes_its_end(unbroken, tmp_path):
    first, expected = unbroken
    shutil.copytree(first.folder, tmp_path / "run")
    again = Run(tmp_path / "run")
    result = again()
    assert (result.exit_code, result.step, again.evaluated) == (EXIT_DONE, 18, [])
    assert dict(result.metrics) == dict(expected.metrics)
    assert tensors_of(again) == tensors_of(first)
    assert again.exported == [again.folder / "emackpt-final"]


def test_the_best_and_the_last_are_kept(tmp_path):
    run = Run(tmp_path / "run", keep_checkpoints=1)
    run()
    assert run.files() == {
        "ckpt-00000018",
        "ckpt-final",
        "ema_weights/emackpt-03",
        "ema_weights/emackpt-best",
    }
    scores = {r["epoch"]: r["AP"] for r in run.records("evaluation")}
    best = read_metadata(run.folder / "ema_weights" / "emackpt-best")
    assert best["epoch"] == max(scores, key=scores.get)
    assert best["best"]["value"] == best["metrics"]["AP"] == max(scores.values())


def test_patience_ends_a_run_and_survives_a_resume(tmp_path):
    # No AP rises by 1, so each evaluation after the first is one without a new best.
    impatient = EvalConfig(patience=2, min_delta=1.0)
    first = Run(tmp_path / "run", evaluation=impatient)
    first.trainer._plan = first.trainer._plan._replace(stop_epoch=2)
    assert first().epoch == 2
    again = Run(tmp_path / "run", evaluation=impatient)
    result = again()
    assert (result.exit_code, result.epoch, again.evaluated) == (EXIT_DONE, 3, [3])
    (*_, text) = sorted(again.folder.glob("train-*.log"))
    assert "no new best in 2 evaluations, the best was AP 0." in text.read_text()
    assert "ckpt-final" in again.files()


def test_a_resume_with_other_annotations_looks_for_a_new_best(tmp_path):
    truth = tmp_path / "val.json"
    for number, content in enumerate(["{}", "{} ", "{} "], start=1):
        truth.write_text(content)
        run = Run(tmp_path / "run", evaluation=EvalConfig(val_json_file=str(truth)))
        run.trainer._plan = run.trainer._plan._replace(stop_epoch=number)
        run()
        logs = "".join(text.read_text() for text in run.folder.glob("train-*.log"))
        assert logs.count("scores are compared anew") == (number > 1)
        if number == 2:
            best = read_metadata(run.folder / "ema_weights" / "emackpt-best")
            (latest,) = [r for r in run.records("evaluation") if r["epoch"] == 2]
            assert (best["epoch"], best["best"]["value"]) == (2, latest["AP"])


def test_the_best_is_best_at_what_is_asked_for(tmp_path):
    run = Run(tmp_path / "run", evaluation=EvalConfig(best_metric="thing"))
    run()
    scores = {r["epoch"]: r["AP_/thing"] for r in run.records("evaluation")}
    best = read_metadata(run.folder / "ema_weights" / "emackpt-best")
    assert best["epoch"] == max(scores, key=scores.get)
    assert best["best"]["metric"] == "thing"


def test_without_averages_the_plain_weights_are_the_best(tmp_path):
    run = Run(tmp_path / "run", optim=dataclasses.replace(OPTIM, moving_average_decay=0.0))
    result = run()
    assert run.files() == {
        "ckpt-00000006",
        "ckpt-00000012",
        "ckpt-00000018",
        "ckpt-final",
        "ckpt-best",
    }
    assert run.exported == [run.folder / "model-final"]
    assert result.metrics["AP"] > 0


def test_the_target_ends_the_run(tmp_path):
    run = Run(tmp_path / "run", evaluation=EvalConfig(target_ap=0.01))
    result = run()
    assert (result.exit_code, result.epoch) == (EXIT_DONE, 1)
    assert {"ckpt-00000006", "ckpt-final", "ema_weights/emackpt-01"} <= run.files()


def test_saves_by_time(tmp_path):
    run = Run(tmp_path / "run", checkpoint_minutes=1e-9, keep_checkpoints=0, num_epochs=1)
    run()
    assert {f"ckpt-{k:08d}" for k in range(1, 7)} <= run.files()


def test_a_benchmark_writes_no_checkpoint(tmp_path):
    train = {"benchmark": True, "benchmark_steps": 9, "checkpoint_minutes": 1e-9}
    run = Run(tmp_path / "run", **train)
    result = run()
    assert (result.exit_code, result.step, run.files()) == (EXIT_DONE, 9, set())
    assert run.evaluated == run.exported == []
    assert result.averages["avg_latency_training"] > 0
    assert not (run.folder / "train").exists()
    (text,) = run.folder.glob("train-*.log")
    assert re.search(r"of 8 steps: median [\d.]+ ms, 90th percentile [\d.]+ ms", text.read_text())
    assert len(run.trainer._steps.throughput._recent) == 8
    stopped = Run(tmp_path / "run", task=StopAfter(3), **train)
    assert stopped().exit_code == EXIT_STOPPED
    assert stopped.files() == set()


class SlowTask(TinyTask):
    """Takes at least 20 ms for a batch."""

    def device_batch(self, batch):
        time.sleep(0.02)
        return super().device_batch(batch)


def test_a_timed_run_fits_its_schedule_to_the_time(tmp_path):
    lengths = {"train_minutes": 1.5 / 60, "num_epochs": 10000, "stop_epoch": 10000}
    lengths["checkpoint_period"] = 1000
    late = EvalConfig(eval_start=9999)
    run = Run(tmp_path / "run", task=SlowTask(), evaluation=late, **lengths)
    # Without the compilation, which takes any time on a busy machine.
    throughput = run.trainer._steps.throughput
    seconds = lambda: throughput.average().step_seconds * throughput.measured_steps  # noqa: E731
    run.trainer._train_seconds = seconds
    result = run()
    assert 1.2 < seconds() < 10.0
    assert 9 <= result.step <= 75
    assert int(run.state.total_steps) == result.step
    assert run.evaluated == [result.epoch]
    rates = [r["learning_rate"] for r in run.records("step")]
    assert rates[-1] < 0.3 * max(rates)  # the schedule came near its end
    # Started again, the time is used up.
    again = Run(tmp_path / "run", task=SlowTask(), **lengths)
    assert (again().step, again.evaluated) == (result.step, [])
