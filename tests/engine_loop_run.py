"""Runs of the training loop on the tiny task, and what they leave in their folder."""

import dataclasses
import time
import types
from pathlib import Path

import tensorflow as tf
from engine_tiny_task import TinyTask
from left_by_runs import recorded, time_log

from engine.config.settings import EvalConfig, OptimConfig, TrainConfig
from engine.files import checkpoint
from engine.files.description import read_metadata
from engine.log.run_log import RunLog
from engine.loop import RunResult, Trainer
from engine.optim.plan import make_plan
from engine.step import TrainStep
from engine.train_state import TrainState

OPTIM = OptimConfig(
    learning_rate=0.05, lr_batch_size=0, lr_warmup_epoch=0.5, moving_average_decay=0.9
)
# 24 examples in batches of 4: 6 steps per epoch.
TRAIN = TrainConfig(batch_size=4, num_epochs=3, checkpoint_period=1, console_seconds=0.0)


class Run:
    """One run; a second one on the same folder continues it.

    Args:
      folder: of the run.
      task, optim, evaluation: what it trains, and how; None: the usual.
      train: changes of TRAIN.
    """

    def __init__(self, folder: Path, *, task=None, optim=OPTIM, evaluation=None, **train):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.task = task or TinyTask(batch_norm=tf.keras.layers.BatchNormalization, noise=0.2)
        train = dataclasses.replace(TRAIN, model_dir=str(folder), **train)
        plan = make_plan(train, optim, num_examples=24, num_ranks=1)
        self.state = TrainState(self.task, optim, plan, dynamic_loss_scale=False)
        latest = checkpoint.newest_resumable(folder)
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
            config=types.SimpleNamespace(train=train, eval=evaluation or EvalConfig(), optim=optim),
            use_xla=False,
            log=RunLog(folder, tensorboard=not train.benchmark),
            description={"config": {"train": dataclasses.asdict(train)}},
            export=self._export,
            write_evaluation=self._write_evaluation,
            resumed=resumed,
            began=time.monotonic(),
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
        return recorded(self.folder, kind)

    def dll(self) -> list[dict]:
        return [r for r in time_log(self.folder) if r["type"] == "LOG"]

    def files(self) -> set[str]:
        found = (str(p.relative_to(self.folder)) for p in self.folder.rglob("*.index"))
        return {name.removesuffix(".index") for name in found}


def board(folder: Path) -> dict[str, dict[int, float]]:
    """Returns tag -> step -> number of a run's TensorBoard files."""
    found: dict[str, dict[int, float]] = {}
    for path in (folder / "train").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                found.setdefault(value.tag, {})[event.step] = number
    return found
