"""From the numbers of single steps to log lines: windows, epochs, throughput, non-finite steps.

Numbers arrive here one step late, so that logging never holds up the device; whoever needs them to
be complete (a save, the end of an epoch) must have them read first.
"""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from engine.config.settings import TrainConfig
from engine.log.meters import RunningMeans, Throughput, format_duration, renamed
from engine.log.run_log import RunLog
from engine.optim.plan import StepPlan
from engine.ranks import devices, distributed

# An fp16 run whose updates are all skipped for so long will not recover.
_MOST_SKIPPED = 100
_WAIT_WARNING, _WAIT_WARNING_STEPS = 0.10, 50
_IDS_NAMED = 32
# Steps of the median that the console shows.
_MEDIAN_STEPS = 20


class NonFiniteLoss(distributed.AgreedError):
    """A loss or gradient is not finite and the run cannot go on."""


class FinishedStep(NamedTuple):
    """A step whose numbers are there.

    step, epoch: 1-based; numbers: float32, in the order of the names; source_ids: string tensors,
    the images of this rank.
    """

    step: int
    epoch: int
    numbers: np.ndarray
    source_ids: Sequence[tf.Tensor]


class StepLog:
    """Logs steps; means are over steps and ranks.

    Args:
      log: where lines go.
      plan: lengths of the run.
      train: settings.
      names: of a step's numbers.
      loss_names: those of them that are losses, beside the total `loss`.
      dynamic_loss_scale: whether skipped steps are to be expected now and then.
      dllogger_names: see `engine.task.Task`; what is named there is recorded by (epoch, batch),
        losses as means of the epoch so far.
    """

    def __init__(
        self,
        log: RunLog,
        plan: StepPlan,
        *,
        train: TrainConfig,
        names: Sequence[str],
        loss_names: Sequence[str],
        dynamic_loss_scale: bool,
        dllogger_names: Mapping[str, Sequence[str]],
    ):
        self._dllogger_names = dllogger_names
        self._log, self._plan, self._train = log, plan, train
        self._names, self._dynamic = list(names), dynamic_loss_scale
        self._losses = [*loss_names, "loss"]
        self._logged = [*loss_names, "reg_l2_loss", "loss", "gradient_norm"]
        window = {"window": train.benchmark_steps} if train.benchmark else {}
        self.throughput = Throughput(
            plan.global_batch_size, warmup_steps=train.log_warmup_steps, **window
        )
        self.last_loss = math.nan
        # Of a timed run not known before its speed is.
        planned = plan.stop_epoch * plan.steps_per_epoch
        self._last_step = 0 if train.train_minutes else planned
        self._window, self._epoch = RunningMeans(), RunningMeans()
        self._recent: deque[np.ndarray] = deque(maxlen=_MEDIAN_STEPS)
        self._skipped_in_a_row = 0
        self._said_at = -math.inf
        self._warned = False

    def add(self, finished: FinishedStep) -> None:
        """Takes in one step.

        Raises:
          NonFiniteLoss: on all ranks; names the step, its numbers and the images.
        """
        named = dict(zip(self._names, finished.numbers.tolist()))
        self.last_loss = named["loss"]
        self._window.add(finished.numbers)
        self._epoch.add(finished.numbers)
        self._recent.append(finished.numbers)
        self._check_finite(finished, named)
        if finished.step % self._train.log_steps == 0:
            self._log_window(finished.step, finished.epoch)
            self._window.clear()

    def show_total(self, total_steps: int) -> None:
        """Tells how long a timed run will be, for progress and ETA."""
        self._last_step = min(self._plan.stop_epoch * self._plan.steps_per_epoch, total_steps)

    def end_epoch(self, epoch: int) -> None:
        """Writes the means of the epoch to TensorBoard, under the reference's tags."""
        if self._epoch.count:
            means = self._named(self._epoch)
            shown = [*self._logged, "learning_rate"]
            self._log.scalars(epoch, {f"epoch_{name}": means[name] for name in shown})
        self._epoch.clear()

    def _named(self, means: RunningMeans) -> dict[str, float]:
        return dict(zip(self._names, means().tolist()))

    def _check_finite(self, finished: FinishedStep, named: Mapping[str, float]) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if named["skipped"] else 0
        losses = {name: named[name] for name in self._losses}
        overflow = self._dynamic and all(map(math.isfinite, losses.values()))
        if not named["skipped"] or (overflow and self._skipped_in_a_row < _MOST_SKIPPED):
            return
        # The numbers are reduced ones, so every rank comes here at the same step.
        mine = [i.decode() for part in finished.source_ids for i in part.numpy().tolist()]
        ids = distributed.all_gather_object(mine[:_IDS_NAMED])
        images = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in enumerate(ids))
        raise NonFiniteLoss(
            f"non-finite numbers at step {finished.step}: {losses}, gradient_norm="
            f"{named['gradient_norm']}, learning rate {named['learning_rate']:g}, loss scale "
            f"{named['loss_scale']:g}, {self._skipped_in_a_row} updates skipped in a row; images "
            f"of this step, {images}. Lower the learning rate (--lr), lengthen --warmup_epochs, "
            "check these images' boxes, or use --precision=float32; checkpoints saved before in "
            f"{self._train.model_dir} are good"
        )

    def _log_window(self, step: int, epoch: int) -> None:
        means = self._named(self._window)
        losses = {name: means[name] for name in self._logged}
        latency, speed, wait = self.throughput.recent()
        rates = {"images_per_second": speed, "data_wait_share": wait}
        self._log.numbers("step", {"step": step, "epoch": epoch, **means, **rates})
        scalars = {f"train/{name}": value for name, value in losses.items()}
        if self._train.time_history:
            first = max(step - self._train.log_steps, 0)
            record = {"Latency": f"{latency:.4f} seconds", "fps": speed, "steps": (first, step)}
            self._log.dll("PARAMETER", record)
            scalars |= {
                "examples/sec": speed,
                "global_step/sec": 1.0 / latency if latency else 0.0,
            }
        if self._dllogger_names:
            batch = step - (epoch - 1) * self._plan.steps_per_epoch
            found = {**self._named(self._epoch), **self.throughput.recent_summary()}
            self._log.dll((epoch, batch), renamed(found, self._dllogger_names))
        if self._train.lr_tb:
            scalars["learning_rate"] = means["learning_rate"]
        self._log.scalars(step, scalars)
        if time.monotonic() - self._said_at >= self._train.console_seconds:
            self._said_at = time.monotonic()
            self._say(step, epoch, means=means)
        if not self._warned and self.throughput.measured_steps >= _WAIT_WARNING_STEPS:
            self._warn_of_waiting()

    def _say(self, step: int, epoch: int, *, means: Mapping[str, float]) -> None:
        # Losses that are switched off are 0: they are in the files, not in the line.
        medians = dict(zip(self._names, np.median(self._recent, axis=0).tolist()))
        of_epoch = self._named(self._epoch)
        parts = " ".join(
            f"{name} {medians[name]:.3g} ({of_epoch[name]:.3g})"
            for name in self._logged
            if of_epoch[name]
        )
        if means["skipped"]:
            parts += f" skipped {means['skipped']:.0%}"
        if self._train.train_minutes:
            place = f"epoch {epoch} step {step}/{self._last_step or '?'}"
        else:
            place = f"epoch {epoch}/{self._plan.stop_epoch} step {step}/{self._last_step}"
        latency, speed, wait = self.throughput.recent()
        peak = devices.peak_memory_bytes()
        memory = f" peak memory {peak / 2**30:.1f} GiB" if peak else ""
        # Of the first step the compilation is the larger part.
        pace, eta = "speed and", "not known yet"
        if latency:
            pace = f"{speed:.1f} images/s {latency:.3g} s/step data wait {wait:.0%}"
        if latency and self._last_step:
            eta = format_duration((self._last_step - step) * latency)
        rate = f"lr {means['learning_rate']:.3g}"
        self._log.info(f"{place} {parts} {rate} {pace}{memory} ETA {eta}")

    def _warn_of_waiting(self) -> None:
        self._warned = True
        wait = self.throughput.recent().wait_share
        if wait > _WAIT_WARNING:
            self._log.warn(
                f"{wait:.0%} of the time is spent waiting for data: give each rank more cores, put "
                "the records on faster storage, or use --cache_records"
            )
