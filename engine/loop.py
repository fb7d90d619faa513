"""The training loop: steps, logs, saves, evaluations, stop rules, end. One loop for every family.

What is random, compiled or specific to a family is elsewhere; here is the order of things. Whatever
all ranks must agree on (stop, save, length of a timed run) is decided on rank 0's clock or by
anyone's signal, and shared at fixed steps (`_agree`), never by each rank for itself.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from engine.batches import NumbersReader, image_shape, on_accelerator, to_accelerator
from engine.evaluation import Evaluator, Validator, percent
from engine.files.best import BestEvaluation, truth_of
from engine.log.hooks import EpochEnd, Hook, RunResult, StepEnd
from engine.log.meanwhile import said_meanwhile
from engine.log.meters import format_duration, renamed
from engine.log.profiler import StepProfiler
from engine.log.run_log import RunLog
from engine.log.step_log import FinishedStep, StepLog
from engine.optim.plan import StepPlan, evaluates_after, evaluates_at_end
from engine.ranks import distributed
from engine.ranks.progress import COMPILE, HERE
from engine.ranks.stop_signals import StopSignals
from engine.run_files import RunFiles
from engine.start import compile_ahead
from engine.step import TrainStep
from engine.task import Shard, Task
from engine.train_state import TrainState

# Exit codes: what ended the run. 75 is EX_TEMPFAIL: start the same command again.
EXIT_DONE, EXIT_STOPPED = 0, 75
# Steps between the small allreduce by which ranks agree to stop or save.
_AGREE_STEPS = 4
# What an evaluation may leave for TensorBoard to show, and how much of it.
_DRAWN, _MOST_SHOWN = "evaluation/report/worst-*.jpg", 8
_FIRST_BATCH = "first_batch.jpg"
_SAID_METRICS = ("AP", "AP50", "mask_AP", "mask_AP50")
# Steps before the speed is known well enough to fit a schedule to a time.
_STEPS_TO_KNOW_SPEED = 8

# Of batches, and of what of them the accelerator has.
_Batches = Generator[tuple[Mapping[str, tf.Tensor], Mapping[str, tf.Tensor]], None, None]


class Trainer:
    """Runs one training from restore to end.

    Args:
      task: the model family with its data.
      state: model, optimizer, counters; already restored and equal on all ranks.
      step: the compiled step over `state`.
      plan: lengths and rates.
      config: the run's, of which the sections train, eval and optim count here.
      use_xla: compile prediction and validation too.
      compiles_ahead: compile the step for all shapes of batches before the first one.
      log: where everything is said.
      description: stored with every checkpoint (configuration, data, environment).
      export: writes the final SavedModel to a folder, with the weights then in the model.
      write_evaluation: (rows, metrics, epoch) -> lines; writes detections and metrics.
      resumed: description of the checkpoint that the run continues from, {} for a new run.
      began: when the program started, by `time.monotonic`.
      hooks: what a user has added.
      shards: the shares of the training data that are this rank's; () for the one of its own.
    """

    def __init__(
        self,
        task: Task,
        state: TrainState,
        step: TrainStep,
        plan: StepPlan,
        *,
        config: Any,
        use_xla: bool,
        compiles_ahead: bool = False,
        log: RunLog,
        description: Mapping[str, Any],
        export: Callable[[Path], None],
        write_evaluation: Callable[[np.ndarray, Mapping[str, float], int], list[str]],
        resumed: Mapping[str, Any],
        began: float,
        hooks: Sequence[Hook] = (),
        shards: Sequence[Shard] = (),
    ):
        self._task, self._state, self._step, self._plan = task, state, step, plan
        train, self._optim = config.train, config.optim
        self._train, self._evaluation = train, config.eval
        self._log, self._began = log, began
        self._hooks, self._write_evaluation = hooks, write_evaluation
        self._shards = list(shards) or [Shard(distributed.rank(), distributed.size())]
        self._evaluator = Evaluator(task, log, use_xla=use_xla)
        self._validator = Validator(task, log, use_xla=use_xla)
        self._files = RunFiles(state, train, log=log, description=description, export=export)
        self._steps = StepLog(
            log,
            plan,
            train=train,
            names=step.names,
            loss_names=task.loss_names,
            dynamic_loss_scale=state.loss_scale.dynamic,
            dllogger_names=task.dllogger_names,
        )
        self._profiler = StepProfiler(train.model_dir, steps=train.profile_steps, log=log)
        self._compiles_ahead = compiles_ahead
        self._shapes: set[tuple] = set()  # of batches whose step has been traced
        self._compiled: set[tuple] = set()  # shapes compiled ahead
        self._read = NumbersReader()
        self._pending: tuple[int, int, Callable[[], np.ndarray], list[tf.Tensor]] | None = None
        self._metrics: dict[str, float] = dict(resumed.get("metrics", {}))
        truth = distributed.on_main(lambda: truth_of(config.eval))
        self._best = BestEvaluation(config.eval, resumed.get("best", {}), truth=truth)
        if self._best.is_anew:
            log.info("scores are compared anew: --best_metric or the annotations are others")
        self._epochs_ended = int(resumed.get("epoch", 0))
        self._seconds_before = float(resumed.get("train_seconds", 0.0))
        self._training_began = time.monotonic()
        self._total_steps = int(state.total_steps)
        self._agree_every = _AGREE_STEPS if distributed.size() > 1 else 1

    # ------------------------------------------------------------------ the run

    def run(self) -> RunResult:
        """Trains to the end or to a request to stop."""
        with StopSignals() as signals, self._profiler:
            result = self._run(signals)
        for hook in self._hooks:
            hook.at_end(result)
        return result

    def _run(self, signals: StopSignals) -> RunResult:
        step = int(self._state.step)
        epoch = step // self._plan.steps_per_epoch
        minutes = self._train.train_minutes
        self._log.info(self._plan.describe(self._optim, train_minutes=minutes))
        if step:
            self._log.info(f"continuing at step {step}, epoch {epoch + 1}")
        with contextlib.ExitStack() as threads:
            threads.callback(self._read.close)
            data = [
                threads.enter_context(contextlib.closing(self._batches(shard, step)))
                for shard in self._shards
            ]
            return self._train_epochs(data, step, epoch, signals=signals)

    def _batches(self, shard: Shard, step: int) -> _Batches:
        """Yields a share's batches from `step` on, with what of them the accelerator has."""
        size = self._optim.gradient_accumulation
        dataset = self._task.train_dataset(shard=shard, start_step=step * size)
        return on_accelerator(dataset, self._task.device_batch, per_step=size)

    def _train_epochs(
        self, data: Sequence[_Batches], step: int, epoch: int, *, signals: StopSignals
    ) -> RunResult:
        plan = self._plan
        # A run stopped at the very end of an epoch still has its evaluation and saves to do.
        finished = self._is_last(epoch, step)
        begun = -(-step // plan.steps_per_epoch)
        if self._epochs_ended < begun and (begun == epoch or finished):
            epoch, finished = begun, self._end_epoch(begun, step)
        while not finished:
            epoch += 1
            step, stopped = self._train_epoch(data, step, epoch, signals=signals)
            if stopped:
                return self._stop(epoch, step)
            finished = self._end_epoch(epoch, step)
        return self._finish(epoch, step)

    def _train_epoch(
        self, data: Sequence[_Batches], step: int, epoch: int, *, signals: StopSignals
    ) -> tuple[int, bool]:
        """Trains to the end of an epoch; returns (step, whether the run is to stop)."""
        last = epoch * self._plan.steps_per_epoch
        throughput = self._steps.throughput
        while step < last and not self._time_is_up(step):
            is_first = not throughput.count
            self._profiler.before_step(throughput.count)
            began = time.monotonic()
            HERE.at(f"reading the batches of step {step + 1}")
            each = range(self._optim.gradient_accumulation)
            taken = [next(share) for share in data for _ in each]
            batches, on_device = zip(*taken)
            waited = time.monotonic() - began
            if is_first and self._compiles_ahead:
                self._compile_ahead(batches[0])
            shapes = tuple(map(image_shape, batches))
            is_new = shapes not in self._shapes
            if is_new:
                shown = ", ".join(dict.fromkeys(map(str, shapes)))
                work = "tracing" if self._compiled.issuperset(shapes) else "tracing and compiling"
                self._log.info(
                    f"{work} the train step for batches of {shown}: its first step takes longest"
                )
                self._shapes.add(shapes)
            HERE.at(f"step {step + 1}", *([COMPILE] if is_new else []))
            with self._compiling() if is_new else contextlib.nullcontext():
                numbers = self._read(self._step(list(on_device)))
                if is_new:
                    numbers()
            step += 1
            self._read_pending()
            self._pending = (step, epoch, numbers, [b["source_id"] for b in batches])
            if is_new:
                which = "first step" if is_first else f"first step of {shown}"
                self._log.info(f"{which} after {format_duration(time.monotonic() - began)}")
                if step == 1 and not self._train.benchmark:
                    distributed.on_main(functools.partial(self._draw, batches[0]))
            throughput.add(time.monotonic() - began, waited, is_measured=not is_new)
            if step % self._agree_every == 0 and self._agree(step, signals):
                return step, True
        self._read_pending()
        self._steps.end_epoch(epoch)
        return step, False

    def _compile_ahead(self, batch: Mapping[str, tf.Tensor]) -> None:
        """Compiles the step for all shapes of batches, where there are several.

        Else every rank would meet them at steps of its own, and all others wait each time.
        """
        others = self._task.in_other_shapes(batch)
        if not others:
            return
        batches = [batch, *others]
        HERE.at("compiling the train step for batches of all shapes", COMPILE)
        shown = ", ".join(str(image_shape(b)) for b in batches)
        self._log.info(f"tracing the train step for batches of {shown}")
        with self._state.kept(), self._compiling():
            given = [to_accelerator(self._task.device_batch(b)) for b in batches]
            programs = self._step.programs(given)
            compile_ahead.call_side_by_side(programs, say=self._log.info)
        self._compiled.update(map(image_shape, batches))

    def _compiling(self) -> contextlib.AbstractContextManager:
        return said_meanwhile(self._log.info, "compiling the train step")

    def _draw(self, batch: Mapping[str, tf.Tensor]) -> None:
        """Draws the first batch into the run's folder."""
        try:
            picture = self._task.draw_batch(batch)
        except Exception as error:  # a picture is not worth the run
            self._log.warn(f"the first batch could not be drawn: {error!r}")
            return
        if picture is not None:
            path = Path(self._train.model_dir) / _FIRST_BATCH
            path.write_bytes(tf.io.encode_jpeg(picture, quality=90).numpy())
            self._log.info(f"the first batch, as the network sees it, is drawn in {path}")
            self._log.pictures(0, {"first_batch": path})

    def _read_pending(self) -> None:
        """Logs the last step, now that the next one is under way."""
        if self._pending is not None:
            step, epoch, numbers, ids = self._pending
            self._pending = None
            finished = FinishedStep(step, epoch, numbers(), ids)
            self._steps.add(finished)
            if self._hooks:
                named = dict(zip(self._step.names, finished.numbers.tolist()))
                for hook in self._hooks:
                    hook.after_step(StepEnd(step, epoch, named))

    def _end_epoch(self, epoch: int, step: int) -> bool:
        """Evaluates and saves as is due; returns True if this was the last epoch."""
        finished = self._is_last(epoch, step)
        if self._train.benchmark:
            return finished
        validation = self._validate(epoch) if self._train.validate else {}
        at_end = evaluates_at_end(self._train)
        evaluated = evaluates_after(epoch, self._train, self._evaluation) or (finished and at_end)
        if evaluated:
            # Nothing that goes wrong in scoring may cost the epoch: a resumed run evaluates again.
            self._files.save(self._progress(step))
            finished = self._evaluate(epoch, step) or finished
        metrics = dict(self._metrics) if evaluated else {}
        if self._is_ended_by_hooks(EpochEnd(step, epoch, metrics, validation)) and not finished:
            finished = True
            if at_end and not evaluated:
                self._evaluate(epoch, step)
        self._epochs_ended = epoch
        if finished or epoch % self._train.checkpoint_period == 0:
            # The resumable checkpoint last: where it is, the epoch needs no more work.
            self._files.save_averages(epoch, self._progress(step))
            self._files.save(self._progress(step))
        return finished

    def _is_ended_by_hooks(self, end: EpochEnd) -> bool:
        """Calls the hooks; returns True if one of any rank wants the run to end."""
        if not self._hooks:
            return False
        wishes = [bool(hook.after_epoch(end)) for hook in self._hooks]
        wish = tf.constant([float(any(wishes))], tf.float64)
        if not distributed.reduce_sum([wish])[0].numpy()[0]:
            return False
        self._log.info(f"epoch {end.epoch}: a hook ends the run")
        return True

    def _is_last(self, epoch: int, step: int) -> bool:
        return epoch >= self._plan.stop_epoch or self._time_is_up(step)

    # ------------------------------------------------------------------ agreement between ranks

    def _agree(self, step: int, signals: StopSignals) -> bool:
        """Shares signals, saves and the length of a timed run; returns True to stop."""
        is_main, is_timed = distributed.is_main(), bool(self._train.train_minutes)
        save_is_due = is_main and self._files.is_due() and not self._train.benchmark
        total = self._fitted_steps(step) if is_main and is_timed else 0
        wishes = [float(bool(signals.received)), float(save_is_due), float(total)]
        with tf.device("cpu:0"):  # else it waits for the accelerator
            stop, save, total = distributed.reduce_sum([tf.constant(wishes, tf.float64)])[0].numpy()
        if is_timed and int(total) != self._total_steps:
            self._total_steps = int(total)
            self._state.total_steps.assign(self._total_steps)
            self._steps.show_total(self._total_steps)
        if save and not stop:
            self._read_pending()
            self._files.save(self._progress(step))
        return bool(stop)

    def _fitted_steps(self, step: int) -> int:
        """Steps that fit in `train_minutes` at the speed so far."""
        throughput = self._steps.throughput
        if throughput.measured_steps < _STEPS_TO_KNOW_SPEED:
            return self._total_steps
        left = max(self._train.train_minutes * 60.0 - self._train_seconds(), 0.0)
        steps = int(left / throughput.recent().step_seconds)
        # No fewer than a period, whose end all ranks reach; none left ends the run here.
        return step + (max(steps, self._agree_every) if steps else 0)

    def _time_is_up(self, step: int) -> bool:
        return bool(self._train.train_minutes) and step >= self._total_steps

    def _train_seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._training_began

    # ------------------------------------------------------------------ evaluation

    def _evaluate(self, epoch: int, step: int) -> bool:
        """Evaluates the averaged weights; returns True when that is to end the run."""
        self._state.equalise()
        with self._state.averaged_weights():
            self._metrics, rows = self._evaluator()
        metrics = self._metrics
        for line in distributed.on_main(lambda: self._write_evaluation(rows, metrics, epoch)):
            self._log.info(line)
        if "AP" not in metrics:
            return False
        drawn = sorted(Path(self._train.model_dir).glob(_DRAWN))[:_MOST_SHOWN]
        self._log.pictures(epoch, {f"eval/{path.stem}": path for path in drawn})
        record = {"epoch": epoch, "validation_accuracy_mAP": percent(metrics, "AP")}
        self._log.dll([], record | renamed(metrics, self._task.dllogger_names))
        self._log.numbers("evaluation", {"epoch": epoch, "step": step, **metrics})
        # Numbers of classes, such as AP_/dog, are a group of their own.
        shown = {f"classes/{k}" if "_/" in k else f"eval/{k}": v for k, v in metrics.items()}
        self._log.scalars(epoch, shown)
        said = [f"{k} {metrics[k]:.4f}" for k in _SAID_METRICS if k in metrics]
        self._log.info(f"epoch {epoch}: {' '.join(said)}")
        if self._best.update(metrics):
            self._files.save_best(self._progress(step) | {"epoch": epoch})
        targets = {"AP": self._evaluation.target_ap, **self._task.more_targets}
        targets = {name: least for name, least in targets.items() if least}
        if targets and all(metrics[name] >= least for name, least in targets.items()):
            reached = ", ".join(f"{name} {least}" for name, least in targets.items())
            self._log.info(f"target {reached} reached at epoch {epoch}")
            return True
        if self._best.is_over:
            self._log.info(
                f"epoch {epoch}: no new best in {self._evaluation.patience} evaluations, the best "
                f"was {self._best.describe()}: the run ends"
            )
        return self._best.is_over

    def _validate(self, epoch: int) -> dict[str, float]:
        """Computes and logs the losses on the validation records."""
        self._state.equalise()
        means = self._validator()
        self._log.numbers("validation", {"epoch": epoch, **means})
        self._log.scalars(epoch, {f"epoch_{name}": value for name, value in means.items()})
        self._log.info(f"epoch {epoch}: " + " ".join(f"{k} {v:.4g}" for k, v in means.items()))
        return means

    def _progress(self, step: int) -> dict[str, Any]:
        """What a checkpoint tells the run that continues from it.

        epoch: the last one whose evaluation and saves are done.
        """
        return {
            "step": step,
            "epoch": self._epochs_ended,
            "best": self._best.state(),
            "metrics": dict(self._metrics),
            "train_seconds": self._train_seconds(),
        }

    # ------------------------------------------------------------------ ends

    def _stop(self, epoch: int, step: int) -> RunResult:
        self._read_pending()
        if self._train.benchmark:
            self._log.info(f"stopped at step {step}")
        else:
            self._files.save(self._progress(step))
            self._log.info(f"stopped at step {step}; the same command continues here")
        self._log.flush()
        return RunResult(EXIT_STOPPED, epoch, step, dict(self._metrics), {})

    def _finish(self, epoch: int, step: int) -> RunResult:
        if not self._train.benchmark:
            self._files.write_final(self._progress(step))
        latency, speed, wait = self._steps.throughput.average()
        seconds = time.monotonic() - self._began
        averages = {
            "avg_fps_training": speed,
            "avg_fps_training_per_GPU": speed / distributed.size(),
            "avg_latency_training": latency,
            "training_loss": self._steps.last_loss,
            "e2e_training_time": seconds,
        }
        self._log.dll([], averages | renamed(averages, self._task.dllogger_names))
        self._log.numbers("end", {"epoch": epoch, "step": step, **averages, **self._metrics})
        self._log.info(
            f"done: {step} steps in {format_duration(seconds)}, "
            f"{speed:.1f} images/s, {latency:.3f} s per step, data wait {wait:.0%}"
        )
        if self._train.benchmark and self._steps.throughput.measured_steps:
            found = self._steps.throughput.recent_summary()
            median, p90 = (1000 * found[f"step_seconds_p{q}"] for q in (50, 90))
            count = self._steps.throughput.measured_steps
            self._log.info(
                f"of {count} steps: median {median:.1f} ms, 90th percentile {p90:.1f} ms"
            )
        self._log.flush()
        return RunResult(EXIT_DONE, epoch, step, dict(self._metrics), averages)
