"""What runs of the loop say of their steps: files, TensorBoard, console, bad numbers, profiles."""

import time

import numpy as np
import pytest
import tensorflow as tf
from engine_loop_run import Run, board
from engine_tiny_task import TinyTask

from engine.log.step_log import FinishedStep, NonFiniteLoss
from engine.loop import EXIT_DONE


class TwoShapes(TinyTask):
    """Every other batch is wider by an input that nobody reads."""

    def train_dataset(self, *, shard, start_step):
        batches = super().train_dataset(shard=shard, start_step=start_step)
        for number, batch in enumerate(batches):
            yield {**batch, "image": tf.zeros([4, 8 + number % 2, 8])}


def test_each_shape_of_batches_says_that_it_is_compiled(tmp_path, capsys):
    run = Run(tmp_path, task=TwoShapes(), num_epochs=1)
    run()
    said = capsys.readouterr().out
    assert said.count("tracing and compiling the train step for batches of") == 2
    assert "first step of (4, 9, 8) after" in said
    assert run.trainer._steps.throughput.measured_steps == 4


def test_tensorboard_tags_and_epoch_means(tmp_path):
    run = Run(tmp_path / "run", lr_tb=True, validate=True)
    run()
    found = board(run.folder)
    steps = run.records("step")
    for tag, name in (("epoch_loss", "loss"), ("epoch_square_loss", "square_loss")):
        assert sorted(found[tag]) == [1, 2, 3]
        expected = np.mean([r[name] for r in steps[6:12]])
        assert found[tag][2] == pytest.approx(expected, rel=1e-5)
    assert {"epoch_reg_l2_loss", "epoch_learning_rate", "epoch_gradient_norm"} <= set(found)
    assert found["learning_rate"][4] == pytest.approx(steps[3]["learning_rate"])
    assert {"examples/sec", "global_step/sec"} <= set(found)
    assert sorted(found["epoch_val_loss"]) == [1, 2, 3]
    assert "eval/AP" in found and "eval/AP_/thing" not in found
    assert {tag for tag in found if tag.startswith("classes/")} == {"classes/AP_/thing"}


def test_flags_that_switch_logs_off(tmp_path):
    run = Run(tmp_path / "run", time_history=False)
    run()
    found = board(run.folder)
    assert not {"examples/sec", "learning_rate", "epoch_val_loss"} & set(found)
    assert all(r["step"] != "PARAMETER" for r in run.dll())


def test_validation_losses_are_those_of_the_whole_set(tmp_path):
    task = TinyTask(num_examples=24)
    run = Run(tmp_path / "run", task=task, num_epochs=1, validate=True)
    run()
    examples = task.examples
    errors = np.square(task.model(examples["x"]) - examples["y"]).sum(axis=1)
    expected = (errors * examples["weight"]).sum() / examples["weight"].sum()
    (record,) = run.records("validation")
    assert record["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert record["val_square_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("log_steps", [1, 100])
def test_numbers_that_are_not_finite_end_the_run(tmp_path, log_steps):
    task = TinyTask(poison=13)  # the fourth batch: examples 12 to 15
    saves = {"checkpoint_minutes": 1e-9, "keep_checkpoints": 0}
    run = Run(tmp_path / "run", task=task, log_steps=log_steps, **saves)
    with pytest.raises(NonFiniteLoss) as error:
        run()
    message = str(error.value)
    for words in (
        "non-finite numbers at step 4",
        "'square_loss': nan",
        "'loss': nan",
        "learning rate 0.05",
        "loss scale 1,",
        "images of this step, rank 0: 12, 13, 14, 15.",
        "--lr",
    ):
        assert words in message, words
    assert sorted(run.files()) == ["ckpt-00000001", "ckpt-00000002", "ckpt-00000003"]


def test_overflow_of_half_precision_is_borne_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.log.step_log._MOST_SKIPPED", 4)
    run = Run(tmp_path / "run", task=TinyTask())
    names, log = run.trainer._step.names, run.trainer._steps
    log._dynamic = True

    def finished(step: int, *, skipped: float):
        row = np.ones(len(names), np.float32)
        row[names.index("skipped")] = skipped
        row[names.index("gradient_norm")] = np.inf if skipped else 2.0
        ids = [tf.constant(["7", "8"])]
        return FinishedStep(step, 1, row, ids)

    for step, skipped in enumerate([1, 1, 1, 0, 1, 1, 1], start=1):
        log.add(finished(step, skipped=skipped))
    with pytest.raises(NonFiniteLoss, match="4 updates skipped in a row; images .*rank 0: 7, 8"):
        log.add(finished(8, skipped=1))
    norms = [r["gradient_norm"] for r in run.records("step")]
    assert norms == [None, None, None, 2.0, None, None, None]  # as JSON cannot hold infinity


def test_the_wait_for_data_is_said_once(tmp_path, capsys):
    class WaitingTask(TinyTask):
        def train_dataset(self, *, shard, start_step):
            def wait(index):
                time.sleep(0.01)
                return index

            def slow(batch):
                index = tf.py_function(wait, [batch["index"]], tf.int64)
                index.set_shape(batch["index"].shape)
                return {**batch, "index": index}

            return super().train_dataset(shard=shard, start_step=start_step).map(slow)

    Run(tmp_path / "run", task=WaitingTask(), benchmark=True, benchmark_steps=70)()
    assert capsys.readouterr().out.count("of the time is spent waiting for data") == 1


def test_numbers_are_recorded_under_other_names_too(tmp_path, capsys):
    task = TinyTask()
    loss_name = task.loss_names[0]
    task.dllogger_names = {
        loss_name: ("their_loss",),
        "step_seconds_p90": ("latency_90",),
        "AP": ("AP", "BBOX_mAP"),
        "avg_fps_training": ("train_perf_fps",),
    }
    run = Run(tmp_path / "run", task=task)
    run()
    steps = [r for r in run.dll() if isinstance(r["step"], list) and len(r["step"]) == 2]
    assert [r["step"] for r in steps] == [[e, b] for e in (1, 2, 3) for b in range(1, 7)]
    losses = [r[loss_name] for r in run.records("step")]
    means = [np.mean(losses[6 * e : 6 * e + b]) for e, b in ((0, 1), (0, 6), (1, 2))]
    told = [steps[i]["data"]["their_loss"] for i in (0, 5, 7)]
    assert told == pytest.approx(means)
    assert steps[-1]["data"]["latency_90"] > 0
    whole = [r["data"] for r in run.dll() if r["step"] == []]
    assert any(data.get("BBOX_mAP") == data.get("AP") is not None for data in whole)
    assert whole[-1]["train_perf_fps"] == whole[-1]["avg_fps_training"]
    # The console: median of the last 20 steps, mean of the epoch.
    printed = capsys.readouterr().out.splitlines()
    (first,) = [line for line in printed if " step 1/18 " in line]
    assert first.endswith(" speed and ETA not known yet") and "images/s" not in first
    said = [line for line in printed if " step 8/18 " in line]
    assert f"{loss_name} {np.median(losses[:8]):.3g} ({np.mean(losses[6:8]):.3g})" in said[0]


@pytest.mark.parametrize(
    ("train_minutes", "total_steps", "place", "eta"),
    [
        (0, None, "epoch 2/3 step 8/18", "3m20s"),
        (5, None, "epoch 2 step 8/?", "not known yet"),
        (5, 12, "epoch 2 step 8/12", "1m20s"),
        (5, 90, "epoch 2 step 8/18", "3m20s"),  # all epochs end before the time does
    ],
)
def test_the_console_tells_the_pace_and_the_time_left(
    tmp_path, capsys, train_minutes, total_steps, place, eta
):
    log = Run(tmp_path / "run", train_minutes=train_minutes).trainer._steps
    for seconds in (900.0, 20.0, 20.0):  # the first one is left out
        log.throughput.add(seconds, 5.0)
    if total_steps:
        log.show_total(total_steps)
    numbers = np.float32([name != "skipped" for name in log._names])
    log.add(FinishedStep(8, 2, numbers, []))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if place in line)
    assert line.endswith(f" 0.2 images/s 20 s/step data wait 25% ETA {eta}")


@pytest.mark.parametrize("steps", [3, 1000])
def test_steps_are_recorded_by_the_profiler(tmp_path, capsys, steps):
    run = Run(tmp_path / "run", profile_steps=steps)  # of 1000 the run's end cuts the recording
    assert run().exit_code == EXIT_DONE
    (profile,) = (tmp_path / "run" / "train" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert profile.stat().st_size > 0
    assert f"recording the next {steps} steps" in capsys.readouterr().out
