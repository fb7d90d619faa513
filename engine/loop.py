"""The training loop: steps, logs, saves, evaluations, stop rules, end. One loop for every model family.

What is random, compiled or specific to a family is elsewhere; here is the order of things. A newcomer's
trap: whatever all ranks must agree on (stop, save, length of a timed run) is decided on rank 0's clock or by
anyone's signal, and shared at fixed steps (`_Agreement`), never by each rank for itself.
"""

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from engine import checkpoint, distributed
from engine.settings import EvalConfig, RuntimeConfig, TrainConfig
from engine.evaluation import Evaluator, percent
from engine.metrics import Stopwatch, Throughput, format_duration
from engine.plan import StepPlan, evaluates_after, evaluates_at_end
from engine.run_log import RunLog
from engine.step import TrainState, TrainStep
from engine.task import Shard, Task

# Exit codes: what ended the run. 75 is EX_TEMPFAIL: start the same command again.
EXIT_DONE, EXIT_STOPPED = 0, 75
# Steps between the small allreduce by which ranks agree to stop or save.
_AGREE_STEPS = 4
_MOST_SKIPPED = 100
_DATA_WAIT_WARNING = 0.10


class NonFiniteLoss(RuntimeError):
    """A loss or gradient is not finite and the run cannot go on."""


@dataclasses.dataclass
class RunResult:
    """How a run ended. metrics: of the last evaluation, {} if there was none."""

    exit_code: int
    epoch: int
    step: int
    metrics: Mapping[str, float]
    averages: Mapping[str, float]


class _Signals:
    """Asks for an orderly end on the first signal; leaves at once on the second."""

    def __init__(self, log: RunLog):
        self.received = ""
        self._log = log
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = signal.Signals(number).name
        self._log.warn(
            f"{self.received}: finishing the step, saving, leaving; a second signal leaves at once"
        )


class Trainer:
    """Runs one training from restore to end.

    Args:
      task: the model family with its data.
      state: model, optimizer, counters; already restored and equal on all ranks.
      step: the compiled step over `state`.
      plan: lengths and rates.
      train, evaluation, runtime: settings.
      accumulation: batches per step.
      log: where everything is said.
      description: stored with every checkpoint (configuration, card, environment).
      export: writes the final SavedModel to a folder, with the weights then in the model.
      write_evaluation: (rows, metrics, epoch) -> lines; writes detections and metrics of an evaluation.
      best: best AP so far (a resumed run), or None.
    """

    def __init__(
        self,
        task: Task,
        state: TrainState,
        step: TrainStep,
        plan: StepPlan,
        *,
        train: TrainConfig,
        evaluation: EvalConfig,
        runtime: RuntimeConfig,
        accumulation: int,
        log: RunLog,
        description: Mapping[str, Any],
        export: Callable[[Path], None],
        write_evaluation: Callable[[np.ndarray, Mapping[str, float], int], list[str]],
        best: float | None,
    ):
        self._task, self._state, self._step, self._plan = task, state, step, plan
        self._train, self._evaluation, self._runtime = train, evaluation, runtime
        self._accumulation, self._log, self._description = accumulation, log, description
        self._export, self._write_evaluation, self._best = export, write_evaluation, best
        self._folder = Path(train.model_dir)
        self._evaluator = Evaluator(task, log, use_xla=runtime.use_xla)
        self._validation = tf.function(
            lambda batch: task.losses(batch, training=False)[:2],
            jit_compile=runtime.use_xla or None,
        )
        self._throughput = Throughput(plan.global_batch_size)
        self._clock = Stopwatch()
        self._signals = _Signals(log)
        self._metrics: dict[str, float] = {}
        self._pending: list[tuple[int, tf.Tensor]] = []
        self._window: list[np.ndarray] = []
        self._skipped_in_a_row = 0
        self._last_ids: Any = []
        self._last_loss = math.nan
        self._last_said = 0.0
        self._last_saved = time.monotonic()
        self._budget = train.train_minutes * 60.0

    # ------------------------------------------------------------------ the run

    def run(self) -> RunResult:
        """Trains to the end or to a request to stop."""
        plan, state = self._plan, self._state
        step = int(state.step)
        start_epoch = step // plan.steps_per_epoch
        self._log.info(plan.describe(self._step._config))
        if step:
            self._log.info(f"continuing at step {step}, epoch {start_epoch + 1}")
        data = iter(
            self._task.train_dataset(
                shard=Shard(distributed.rank(), distributed.size()),
                start_step=step * self._accumulation,
            )
        )
        evaluated = 0
        epoch = start_epoch
        while epoch < plan.stop_epoch and not self._time_is_up(step):
            epoch += 1
            step, stopped = self._train_epoch(data, step, epoch)
            if stopped:
                self._save(step)
                self._log.info(f"stopped at step {step}; the same command continues here")
                self._log.flush()
                return self._result(EXIT_STOPPED, epoch, step)
            finished = epoch >= plan.stop_epoch or self._time_is_up(step)
            if self._train.validate:
                self._validate(epoch)
            if evaluates_after(epoch, self._train, self._evaluation):
                evaluated = epoch
                if self._evaluate(epoch, step):
                    finished = True
            if not self._train.benchmark and (
                epoch % self._train.checkpoint_period == 0 or finished
            ):
                self._save(step)
                self._save_averages(f"emackpt-{epoch:02d}", epoch)
            if finished:
                break
        return self._finish(epoch, step, evaluated)

    def _train_epoch(self, data: Any, step: int, epoch: int) -> tuple[int, bool]:
        last = epoch * self._plan.steps_per_epoch
        while step < last and not self._time_is_up(step):
            if not self._throughput._count:
                self._log.info("tracing and compiling the train step; the first step takes longest")
            began = time.monotonic()
            batches = [next(data) for _ in range(self._accumulation)]
            waited = time.monotonic() - began
            self._last_ids = batches[-1]["source_id"]
            numbers = self._step([self._task.device_batch(b) for b in batches])
            step += 1
            if not self._throughput._count:
                numbers.numpy()
                self._log.info(f"first step after {format_duration(time.monotonic() - began)}")
            self._read_pending(epoch)
            self._pending.append((step, numbers))
            self._throughput.add(time.monotonic() - began, waited)
            if step % _AGREE_STEPS == 0 and self._agree(step):
                return step, True
        self._read_pending(epoch)
        return step, False

    # ------------------------------------------------------------------ agreement between ranks

    def _agree(self, step: int) -> bool:
        """Shares signals, saves and the length of a timed run; returns True to stop."""
        main = distributed.is_main()
        save_due = self._train.checkpoint_minutes and (
            time.monotonic() - self._last_saved > self._train.checkpoint_minutes * 60
        )
        wishes = tf.constant(
            [
                float(bool(self._signals.received)),
                float(bool(main and save_due and not self._train.benchmark)),
                float(self._fitted_steps(step) if main and self._budget else 0),
            ],
            tf.float64,
        )
        stop, save, total = distributed.reduce_sum([wishes])[0].numpy()
        if total:
            self._state.total_steps.assign(int(total))
        if save and not stop:
            self._save(step)
        return bool(stop)

    def _fitted_steps(self, step: int) -> int:
        """Steps that fit in the time budget at the present speed, for `train_minutes`."""
        seconds = self._throughput.average_step_seconds()
        if self._throughput.measured_steps < 8 or not seconds:
            return int(self._state.total_steps)
        left = max(self._budget - self._clock.seconds(), 0.0)
        return step + max(int(left / seconds), _AGREE_STEPS - step % _AGREE_STEPS)

    def _time_is_up(self, step: int) -> bool:
        return bool(self._budget) and step >= int(self._state.total_steps)

    # ------------------------------------------------------------------ logs

    def _read_pending(self, epoch: int) -> None:
        """Reads numbers of steps already finished, so that logging does not hold up the device."""
        for step, numbers in self._pending:
            values = numbers.numpy()
            self._window.append(values)
            self._last_loss = float(values[self._step.names.index("loss")])
            self._check_finite(step, values)
            if step % self._train.log_steps == 0:
                self._log_step(step, epoch)
                self._window.clear()
        self._pending.clear()

    def _check_finite(self, step: int, values: np.ndarray) -> None:
        named = dict(zip(self._step.names, values.tolist(), strict=True))
        losses = {k: named[k] for k in (*self._task.loss_names, "loss")}
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if named["skipped"] else 0
        overflow = self._state.loss_scale.dynamic and all(map(math.isfinite, losses.values()))
        if not named["skipped"] or (overflow and self._skipped_in_a_row < _MOST_SKIPPED):
            return
        ids = [i.decode() for i in np.asarray(self._last_ids).tolist()]
        raise NonFiniteLoss(
            f"non-finite numbers at step {step}: {losses}, gradient_norm={named['gradient_norm']}, learning rate "
            f"{named['learning_rate']:g}, loss scale {named['loss_scale']:g}, {self._skipped_in_a_row} updates skipped "
            f"in a row; images of the last batch on rank {distributed.rank()}: {ids[:32]}. Lower the learning rate "
            "(--lr), lengthen --warmup_epochs, check these images' boxes, or use --precision=float32; the last "
            f"checkpoint in {self._folder} is good"
        )

    def _log_step(self, step: int, epoch: int) -> None:
        means = dict(zip(self._step.names, np.mean(self._window, axis=0).tolist(), strict=True))
        speed, wait = self._throughput.images_per_second(), self._throughput.wait_share()
        latency = self._throughput.recent_step_seconds()
        data = {
            name: means[name]
            for name in (*self._task.loss_names, "reg_l2_loss", "loss", "gradient_norm")
        }
        first = max(step - self._train.log_steps, 0)
        if self._train.time_history:
            self._log.dll(
                "PARAMETER",
                {"Latency": f"{latency:.4f} seconds", "fps": speed, "steps": (first, step)},
            )
        self._log.numbers(
            "step",
            {
                "step": step,
                "epoch": epoch,
                **means,
                "images_per_second": speed,
                "data_wait_share": wait,
            },
        )
        scalars = {"examples/sec": speed, "global_step/sec": 1.0 / latency if latency else 0.0}
        scalars |= {f"train/{k}": v for k, v in data.items()}
        if self._train.lr_tb:
            scalars["learning_rate"] = means["learning_rate"]
        self._log.scalars(step, scalars)
        if step % self._plan.steps_per_epoch == 0:
            self._log.scalars(epoch, {f"epoch_{k}": v for k, v in data.items()} | {
                "epoch_learning_rate": means["learning_rate"]})  # fmt: skip
        if time.monotonic() - self._last_said >= self._train.console_seconds or step == 1:
            self._say_step(step, epoch, data, means)

    def _say_step(
        self, step: int, epoch: int, data: Mapping[str, float], means: Mapping[str, float]
    ) -> None:
        self._last_said = time.monotonic()
        last = self._plan.stop_epoch * self._plan.steps_per_epoch
        last = min(last, int(self._state.total_steps)) if self._budget else last
        wait = self._throughput.wait_share()
        eta = format_duration((last - step) * self._throughput.recent_step_seconds())
        parts = " ".join(f"{k} {v:.4g}" for k, v in data.items())
        if means["skipped"]:
            parts += f" skipped {means['skipped']:.0%}"
        memory = _peak_memory()
        self._log.info(
            f"epoch {epoch}/{self._plan.stop_epoch} step {step}/{last} {parts} lr {means['learning_rate']:.3g} "
            f"{self._throughput.images_per_second():.1f} images/s data wait {wait:.0%}{memory} ETA {eta}"
        )
        if wait > _DATA_WAIT_WARNING and self._throughput.measured_steps == 50:
            self._log.warn(
                f"{wait:.0%} of the time is spent waiting for data: give each rank more cores, put the records on "
                "faster storage, or use --cache_records"
            )

    # ------------------------------------------------------------------ evaluation and saving

    def _evaluate(self, epoch: int, step: int) -> bool:
        """Evaluates the averaged weights; returns True when the target AP is reached."""
        self._state.equalise()
        with self._state.averaged_weights():
            self._metrics, rows = self._evaluator()
        ap = self._metrics["AP"]
        if distributed.is_main():
            for line in self._write_evaluation(rows, self._metrics, epoch):
                self._log.info(line)
        self._log.dll([], {"epoch": epoch, "validation_accuracy_mAP": percent(self._metrics, "AP")})
        self._log.numbers("evaluation", {"epoch": epoch, "step": step, **self._metrics})
        self._log.scalars(
            epoch, {f"eval/{k}": v for k, v in self._metrics.items() if not k.startswith("AP_/")}
        )
        self._log.info(f"epoch {epoch}: AP {ap:.4f} AP50 {self._metrics['AP50']:.4f}")
        if self._best is None or ap > self._best:
            self._best = ap
            if not self._train.benchmark:
                self._save_averages("emackpt-best", epoch)
        reached = bool(self._evaluation.target_ap) and ap >= self._evaluation.target_ap
        if reached:
            self._log.info(f"target AP {self._evaluation.target_ap} reached at epoch {epoch}")
        return reached

    def _validate(self, epoch: int) -> None:
        sums, weights = None, 0.0
        for batch in self._task.eval_dataset(shard=Shard(distributed.rank(), distributed.size())):
            loss, parts = self._validation(self._task.device_batch(batch))
            values = tf.stack(
                [tf.cast(loss, tf.float64), *[tf.cast(v, tf.float64) for v in parts.values()]]
            )
            sums, weights = values if sums is None else sums + values, weights + 1.0
        total = distributed.reduce_sum([tf.concat([sums, [weights]], axis=0)])[0].numpy()
        names = ("val_loss", *[f"val_{n}" for n in self._task.loss_names])
        means = dict(zip(names, (total[:-1] / total[-1]).tolist(), strict=True))
        self._log.numbers("validation", {"epoch": epoch, **means})
        self._log.scalars(epoch, {f"epoch_{k}": v for k, v in means.items()})
        self._log.info(f"epoch {epoch}: " + " ".join(f"{k} {v:.4g}" for k, v in means.items()))

    def _metadata(self, epoch: int | None = None) -> dict[str, Any]:
        step = int(self._state.step)
        return {
            **self._description,
            "step": step,
            "epoch": epoch if epoch is not None else step // self._plan.steps_per_epoch,
            "best_ap": self._best,
            "metrics": {k: v for k, v in self._metrics.items()},
        }

    def _save(self, step: int) -> None:
        self._state.equalise()
        if distributed.is_main():
            prefix = self._folder / f"ckpt-{step:08d}"
            checkpoint.save(prefix, self._state.tensors(), self._metadata())
            checkpoint.write_pointer(self._folder, str(prefix))
            checkpoint.prune(
                checkpoint.numbered(self._folder, "ckpt-"), self._train.keep_checkpoints
            )
            self._log.info(f"saved {prefix}")
        self._last_saved = time.monotonic()
        self._log.flush()
        distributed.barrier()

    def _save_averages(self, name: str, epoch: int) -> None:
        """Writes the averaged weights in the model's slots."""
        if not self._state.averaging:
            return
        self._state.equalise()
        if distributed.is_main():
            folder = self._folder / "ema_weights"
            weights = {f"model/{name}": value for name, value in self._state.averages().items()}
            checkpoint.save(folder / name, weights, self._metadata(epoch))
            if name != "emackpt-best":
                checkpoint.write_pointer(folder, name)
                checkpoint.prune(
                    checkpoint.numbered(folder, "emackpt-"), self._train.keep_checkpoints
                )
        distributed.barrier()

    # ------------------------------------------------------------------ end

    def _finish(self, epoch: int, step: int, evaluated: int) -> RunResult:
        if epoch and evaluated != epoch and evaluates_at_end(self._train):
            self._evaluate(epoch, step)
        if not self._train.benchmark:
            self._write_final(epoch)
        averages = {
            "avg_fps_training": self._throughput.average_images_per_second(),
            "avg_fps_training_per_GPU": self._throughput.average_images_per_second()
            / distributed.size(),
            "avg_latency_training": self._throughput.average_step_seconds(),
            "training_loss": self._last_loss,
            "e2e_training_time": self._clock.seconds(),
        }
        self._log.dll([], averages)
        self._log.numbers("end", {"epoch": epoch, "step": step, **averages, **self._metrics})
        self._log.info(
            f"done: {step} steps in {format_duration(self._clock.seconds())}, "
            f"{averages['avg_fps_training']:.1f} images/s, {averages['avg_latency_training']:.3f} s per step, "
            f"data wait {self._throughput.average_wait_share():.0%}"
        )
        self._log.flush()
        return self._result(EXIT_DONE, epoch, step, averages)

    def _write_final(self, epoch: int) -> None:
        if distributed.is_main():
            checkpoint.save(
                self._folder / "ckpt-final", self._state.tensors(), self._metadata(epoch)
            )
            with self._state.averaged_weights():
                self._export(
                    self._folder / ("emackpt-final" if self._state.averaging else "model-final")
                )
        distributed.barrier()

    def _result(
        self, code: int, epoch: int, step: int, averages: Mapping[str, float] | None = None
    ) -> RunResult:
        return RunResult(code, epoch, step, dict(self._metrics), dict(averages or {}))


def _peak_memory() -> str:
    if not tf.config.get_visible_devices("GPU"):
        return ""
    return f" peak memory {tf.config.experimental.get_memory_info('GPU:0')['peak'] / 2**30:.1f} GiB"
