"""Programs compiled before the first step: all that a step looks for, and nothing else changed.

As a program: trains on two shapes of batches in the folder named, with the word `ahead` after
compiling both ahead. What XLA compiles is counted by what it writes down, which it is told to do
before TensorFlow starts.
"""

import itertools
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from engine_tiny_task import FOUR_EPOCHS, TinyTask

from engine.config.settings import EvalConfig, OptimConfig, TrainConfig
from engine.log.run_log import RunLog
from engine.loop import Trainer
from engine.start.compile_ahead import call_side_by_side
from engine.step import TrainStep
from engine.train_state import TrainState

OPTIM = OptimConfig(learning_rate=0.05, lr_batch_size=0, moving_average_decay=0.9)
STEPS = 12


class TwoShapes(TinyTask):
    """Every third batch has half the examples."""

    def __init__(self):
        super().__init__(batch_norm=tf.keras.layers.BatchNormalization, noise=0.2)
        self.traced = 0

    def train_dataset(self, *, shard, start_step):
        batches = super().train_dataset(shard=shard, start_step=start_step)
        return (
            {name: value[:2] if step % 3 == 2 else value for name, value in batch.items()}
            for step, batch in zip(itertools.count(start_step), batches)
        )

    def in_other_shapes(self, batch):
        return [{name: value[:2] for name, value in batch.items()}]

    def losses(self, batch, *, training, seed=None):
        self.traced += 1
        return super().losses(batch, training=training, seed=seed)


def train(folder: Path, *, ahead: bool, use_xla: bool) -> TwoShapes:
    """Trains for two epochs of six steps; state.npz is what is left of them."""
    folder.mkdir()
    task = TwoShapes()
    state = TrainState(task, OPTIM, FOUR_EPOCHS, dynamic_loss_scale=True)
    train = TrainConfig(model_dir=str(folder), batch_size=4, console_seconds=0.0, skip_test=True)
    trainer = Trainer(
        task,
        state,
        TrainStep(task, state, OPTIM, use_xla=use_xla, half_gradients=False),
        FOUR_EPOCHS._replace(stop_epoch=2),
        config=types.SimpleNamespace(train=train, eval=EvalConfig(), optim=OPTIM),
        use_xla=False,
        compiles_ahead=ahead,
        log=RunLog(folder, dll_name="dll.txt", tensorboard=False),
        description={},
        export=lambda path: None,
        write_evaluation=lambda rows, metrics, epoch: [],
        resumed={},
        began=time.monotonic(),
    )
    assert trainer.run().step == STEPS
    np.savez(folder / "state.npz", **{k: v.numpy() for k, v in state.tensors().items()})
    return task


def test_the_run_is_the_same_to_the_bit(tmp_path, capsys):
    tasks = [train(tmp_path / str(ahead), ahead=ahead, use_xla=False) for ahead in (True, False)]
    assert tasks[0].traced == tasks[1].traced == 2
    said = capsys.readouterr().out
    assert said.count("tracing and compiling the train step") == 2  # of the second run
    assert "compiling 3 programs side by side: forward and backward of (4, 5)" in said
    assert "3 of 3 after" in said
    ahead, plain = (np.load(tmp_path / str(ahead) / "state.npz") for ahead in (True, False))
    assert ahead.files == plain.files
    for name in plain.files:
        np.testing.assert_array_equal(ahead[name], plain[name], err_msg=name)


@pytest.mark.parametrize("words", [[], ["ahead"]], ids=["as_needed", "ahead"])
def test_a_step_takes_the_programs_that_were_compiled(tmp_path, words):
    written = tmp_path / "xla"
    flags = f"--xla_dump_to={written} --xla_dump_hlo_as_text"
    tests = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, __file__, tmp_path / "run", *words],
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
        },
        check=True,
        timeout=300,
    )
    compiled = [path.name for path in written.glob("*before_optimizations.txt")]
    assert sum("forward_backward" in name for name in compiled) == 2, compiled
    assert sum("update" in name for name in compiled) == 1, compiled


def test_programs_are_called_at_the_same_time():
    meeting = threading.Barrier(3, timeout=60)
    said = []
    call_side_by_side(dict.fromkeys("abc", meeting.wait), say=said.append)
    assert said[0] == "compiling 3 programs side by side: a, b, c"
    assert sorted(line[-1] for line in said[1:]) == ["a", "b", "c"]


def test_what_finds_no_memory_beside_the_others_is_called_alone():
    running, calls = threading.Semaphore(1), []

    def large(name):
        calls.append(name)
        if len(calls) <= 2:
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")
        assert running.acquire(blocking=False)
        running.release()

    said = []
    call_side_by_side({name: lambda name=name: large(name) for name in "ab"}, say=said.append)
    assert sorted(calls[:2]) == sorted(calls[2:]) == ["a", "b"]
    assert sum("now by itself" in line for line in said) == 2


@pytest.mark.parametrize("error", [tf.errors.ResourceExhaustedError(None, None, "x"), ValueError()])
def test_what_fails_by_itself_ends_the_run(error):
    def call():
        raise error

    with pytest.raises(type(error)):
        call_side_by_side({"a": call}, say=lambda line: None)


if __name__ == "__main__":
    train(Path(sys.argv[1]), ahead="ahead" in sys.argv[2:], use_xla=True)
