"""Whole runs of the loop on a tiny task: what is written when, resumes, stops, bad numbers."""

import dataclasses
import json
import os
import shutil
import signal
import time
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from engine_tiny_task import TinyTask

from engine import loop as loop_lib
from engine.config.settings import EvalConfig, OptimConfig, TrainConfig
from engine.files import checkpoint
from engine.files.description import read_metadata
from engine.log.meters import Stopwatch
from engine.log.run_log import RunLog
from engine.log.step_log import NonFiniteLoss
from engine.loop import EXIT_DONE, EXIT_STOPPED, RunResult, Trainer
from engine.optim.plan import make_plan
from engine.step import TrainStep
from engine.train_state import TrainState

OPTIM = OptimConfig(
    learning_rate=0.05, lr_batch_size=0, lr_warmup_epoch=0.5, moving_average_decay=0.9
)
# 24 examples in batches of 4: 6 steps per epoch.
TRAIN = TrainConfig(batch_size=4, num_epochs=3, checkpoint_period=1, console_seconds=0.0)


class Run:
    """One run; a second one on the same folder continues it."""

    def __init__(self, folder: Path, *, task=None, train=TRAIN, optim=OPTIM, evaluation=None):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.task = task or TinyTask(batch_norm=tf.keras.layers.BatchNormalization, noise=0.2)
        train = dataclasses.replace(train, model_dir=str(folder))
        plan = make_plan(train, optim, num_examples=24, num_ranks=1)
        self.state = TrainState(self.task, optim, plan, dynamic_loss_scale=False)
        latest = next(reversed(checkpoint.numbered(folder, "ckpt-")), None)
        resumed = read_metadata(latest) if latest else {}
        if latest:
            self.state.assign(checkpoint.load(latest, self.state.tensors()))
        step = TrainStep(self.task, self.state, optim, use_xla=False, half_gradients=False)
        self.exported: list[Path] = []
        self.evaluated: list[int] = []
        self.trainer = Trainer(
            self.task,
            self.state,
            step,
            plan,
            train=train,
            evaluation=evaluation or EvalConfig(),
            accumulation=optim.gradient_accumulation,
            use_xla=False,
            log=RunLog(folder, tensorboard=not train.benchmark),
            plan_line="the plan",
            description={"config": {"train": dataclasses.asdict(train)}},
            export=self._export,
            write_evaluation=self._write_evaluation,
            resumed=resumed,
            clock=Stopwatch(),
        )

    def __call__(self) -> RunResult:
        return self.trainer.run()

    def _export(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.exported.append(path)

    def _write_evaluation(self, rows, metrics, epoch) -> list[str]:
        assert rows.shape == (24, 7)
        self.evaluated.append(epoch)
        return [f"wrote {epoch}"]

    def records(self, kind: str) -> list[dict]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [r for r in map(json.loads, lines) if r["kind"] == kind]

    def dll(self) -> list[dict]:
        lines = (self.folder / "time_log.txt").read_text().splitlines()
        records = [json.loads(line.removeprefix("DLLL ")) for line in lines]
        return [r for r in records if r["type"] == "LOG"]

    def files(self) -> set[str]:
        found = (str(p.relative_to(self.folder)) for p in self.folder.rglob("*.index"))
        return {name.removesuffix(".index") for name in found}


def tensors_of(run: Run) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in run.state.tensors().items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Run, RunResult]:
    """A run of three epochs; not to be changed."""
    run = Run(tmp_path_factory.mktemp("loop") / "unbroken")
    return run, run()


class TwoShapes(TinyTask):
    """Every other batch is wider by an input that nobody reads."""

    def train_dataset(self, *, shard, start_step):
        batches = super().train_dataset(shard=shard, start_step=start_step)
        for number, batch in enumerate(batches):
            yield {**batch, "image": tf.zeros([4, 8 + number % 2, 8])}


def test_each_shape_of_batches_says_that_it_is_compiled(tmp_path, capsys):
    run = Run(tmp_path, task=TwoShapes(), train=dataclasses.replace(TRAIN, num_epochs=1))
    run()
    said = capsys.readouterr().out
    assert said.count("tracing and compiling the train step for batches of") == 2
    assert "first step of (4, 9, 8) after" in said
    assert run.trainer._steps.throughput.measured_steps == 4


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
    train = dataclasses.replace(TRAIN, log_steps=4, time_history=True)
    fourth = Run(tmp_path / "fourth", train=train)
    fourth()
    single, means = unbroken[0].records("step"), fourth.records("step")
    assert [r["step"] for r in means] == [4, 8, 12, 16]
    expected = np.mean([r["square_loss"] for r in single[4:8]])
    assert means[1]["square_loss"] == pytest.approx(expected, rel=1e-5)
    parameters = [r["data"]["steps"] for r in fourth.dll() if r["step"] == "PARAMETER"]
    assert parameters == [[0, 4], [4, 8], [8, 12], [12, 16]]


def board(folder: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for path in (folder / "train").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                found.setdefault(value.tag, {})[event.step] = number
    return found


def test_tensorboard_tags_and_epoch_means(tmp_path):
    run = Run(tmp_path / "run", train=dataclasses.replace(TRAIN, lr_tb=True, validate=True))
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
    run = Run(tmp_path / "run", train=dataclasses.replace(TRAIN, time_history=False))
    run()
    found = board(run.folder)
    assert not {"examples/sec", "learning_rate", "epoch_val_loss"} & set(found)
    assert all(r["step"] != "PARAMETER" for r in run.dll())


def test_validation_losses_are_those_of_the_whole_set(tmp_path):
    task = TinyTask(num_examples=24)
    train = dataclasses.replace(TRAIN, num_epochs=1, validate=True)
    run = Run(tmp_path / "run", task=task, train=train)
    run()
    examples = task.examples
    errors = np.square(task.model(examples["x"]) - examples["y"]).sum(axis=1)
    expected = (errors * examples["weight"]).sum() / examples["weight"].sum()
    (record,) = run.records("validation")
    assert record["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert record["val_square_loss"] == pytest.approx(expected, rel=1e-5)


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
    run = Run(tmp_path / "run", train=dataclasses.replace(TRAIN, keep_checkpoints=1))
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
    first = Run(tmp_path / "run", evaluation=impatient, train=dataclasses.replace(TRAIN))
    first.trainer._plan = first.trainer._plan._replace(stop_epoch=2)
    assert first().epoch == 2
    again = Run(tmp_path / "run", evaluation=impatient, train=dataclasses.replace(TRAIN))
    result = again()
    assert (result.exit_code, result.epoch, again.evaluated) == (EXIT_DONE, 3, [3])
    (*_, text) = sorted(again.folder.glob("train-*.log"))
    assert "no new best in 2 evaluations, the best was AP 0." in text.read_text()
    assert "ckpt-final" in again.files()


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


def test_saves_by_time(tmp_path, monkeypatch):
    train = dataclasses.replace(TRAIN, checkpoint_minutes=1e-9, keep_checkpoints=0)
    run = Run(tmp_path / "run", train=dataclasses.replace(train, num_epochs=1))
    run()
    assert {f"ckpt-{k:08d}" for k in range(1, 7)} <= run.files()


def test_a_benchmark_writes_no_checkpoint(tmp_path):
    train = dataclasses.replace(TRAIN, benchmark=True, benchmark_steps=9, checkpoint_minutes=1e-9)
    run = Run(tmp_path / "run", train=train)
    result = run()
    assert (result.exit_code, result.step, run.files()) == (EXIT_DONE, 9, set())
    assert run.evaluated == run.exported == []
    assert result.averages["avg_latency_training"] > 0
    assert not (run.folder / "train").exists()
    stopped = Run(tmp_path / "run", train=train, task=StopAfter(3))
    assert stopped().exit_code == EXIT_STOPPED
    assert stopped.files() == set()


@pytest.mark.parametrize("log_steps", [1, 100])
def test_numbers_that_are_not_finite_end_the_run(tmp_path, log_steps):
    task = TinyTask(poison=13)  # the fourth batch: examples 12 to 15
    train = dataclasses.replace(TRAIN, log_steps=log_steps, checkpoint_minutes=1e-9)
    run = Run(tmp_path / "run", task=task, train=dataclasses.replace(train, keep_checkpoints=0))
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
    numbers = np.ones(len(run.trainer._step.names), np.float32)
    names = list(run.trainer._step.names)
    log = run.trainer._steps
    log._dynamic = True

    def finished(step: int, *, skipped: float):
        row = numbers.copy()
        row[names.index("skipped")] = skipped
        row[names.index("gradient_norm")] = np.inf if skipped else 2.0
        ids = [tf.constant(["7", "8"])]
        return loop_lib.FinishedStep(step, 1, row, ids)

    for step, skipped in enumerate([1, 1, 1, 0, 1, 1, 1], start=1):
        log.add(finished(step, skipped=skipped))
    with pytest.raises(NonFiniteLoss, match="4 updates skipped in a row; images .*rank 0: 7, 8"):
        log.add(finished(8, skipped=1))
    norms = [r["gradient_norm"] for r in run.records("step")]
    assert norms == [None, None, None, 2.0, None, None, None]  # as JSON cannot hold infinity


class SlowTask(TinyTask):
    """Takes at least 20 ms for a batch."""

    def device_batch(self, batch):
        time.sleep(0.02)
        return super().device_batch(batch)


def test_a_timed_run_fits_its_schedule_to_the_time(tmp_path):
    train = dataclasses.replace(
        TRAIN, train_minutes=1.5 / 60, num_epochs=10000, stop_epoch=10000, checkpoint_period=1000
    )
    run = Run(
        tmp_path / "run", task=SlowTask(), train=train, evaluation=EvalConfig(eval_start=9999)
    )
    # Without the compilation, which takes any time on a busy machine.
    throughput = run.trainer._steps.throughput
    seconds = lambda: throughput.average_step_seconds() * throughput.measured_steps  # noqa: E731
    run.trainer._train_clock = types.SimpleNamespace(seconds=seconds)
    result = run()
    assert 1.2 < seconds() < 10.0
    assert 9 <= result.step <= 75
    assert int(run.state.total_steps) == result.step
    assert run.evaluated == [result.epoch]
    rates = [r["learning_rate"] for r in run.records("step")]
    assert rates[-1] < 0.3 * max(rates)  # the schedule came near its end
    # Started again, the time is used up.
    again = Run(tmp_path / "run", task=SlowTask(), train=train)
    assert (again().step, again.evaluated) == (result.step, [])


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

    train = dataclasses.replace(TRAIN, benchmark=True, benchmark_steps=70)
    Run(tmp_path / "run", task=WaitingTask(), train=train)()
    assert capsys.readouterr().out.count("of the time is spent waiting for data") == 1


def test_numbers_are_recorded_under_other_names_too(tmp_path, capsys):
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization, noise=0.2)
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
    said = [line for line in capsys.readouterr().out.splitlines() if " step 8/18 " in line]
    assert f"{loss_name} {np.median(losses[:8]):.3g} ({np.mean(losses[6:8]):.3g})" in said[0]


def test_steps_are_recorded_by_the_profiler(tmp_path, capsys):
    run = Run(tmp_path / "run", train=dataclasses.replace(TRAIN, profile_steps=3))
    assert run().exit_code == EXIT_DONE
    (profile,) = (tmp_path / "run" / "train" / "plugins" / "profile").glob("*/*.xplane.pb")
    assert profile.stat().st_size > 0
    assert "recording the next 3 steps" in capsys.readouterr().out


def test_a_recording_that_is_cut_short_is_kept(tmp_path):
    run = Run(tmp_path / "run", train=dataclasses.replace(TRAIN, profile_steps=1000))
    assert run().exit_code == EXIT_DONE
    assert list((tmp_path / "run" / "train" / "plugins" / "profile").glob("*/*.xplane.pb"))
