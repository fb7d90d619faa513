"""The state: into checkpoints and back bit for bit, and out of the way of an evaluation."""

import numpy as np
import pytest
import tensorflow as tf
from engine_tiny_task import FOUR_EPOCHS, TinyTask

from engine.config.settings import OptimConfig
from engine.files import checkpoint
from engine.step import TrainStep
from engine.task import Shard
from engine.train_state import TrainState

PLAN = FOUR_EPOCHS._replace(warmup_steps=3)


def make(optimizer: str = "sgd") -> tuple[TinyTask, TrainStep]:
    config = OptimConfig(optimizer=optimizer, moving_average_decay=0.9)
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization, noise=0.3)
    state = TrainState(task, config, PLAN, dynamic_loss_scale=True)
    return task, TrainStep(task, state, config, use_xla=False, half_gradients=False, seed=5)


def run(task: TinyTask, step: TrainStep, steps: int) -> list[np.ndarray]:
    start = int(step.state.step)
    data = iter(task.train_dataset(shard=Shard(0, 1), start_step=start))
    return [step([task.device_batch(next(data))]).numpy() for _ in range(steps)]


def snapshot(step: TrainStep) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in step.state.tensors().items()}


def assert_equal_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_equals_an_unbroken_one(optimizer, tmp_path):
    task, unbroken = make(optimizer)
    numbers = run(task, unbroken, 9)

    task, first = make(optimizer)
    run(task, first, 4)
    prefix = checkpoint.save(tmp_path / "ckpt-00000004", first.state.tensors(), {})
    task, resumed = make(optimizer)
    run(task, resumed, 1)  # whatever was there before must not matter
    resumed.state.assign(checkpoint.load(prefix, resumed.state.tensors()))
    assert_equal_bits(snapshot(resumed), snapshot(first))
    np.testing.assert_array_equal(numbers[4:], run(task, resumed, 5))
    assert_equal_bits(snapshot(resumed), snapshot(unbroken))


def test_names_in_a_checkpoint():
    _, step = make()
    names = set(step.state.tensors())
    assert {"model/hidden/kernel", "momentum/out/bias", "ema/hidden_bn/moving_mean"} <= names
    assert {"state/step", "state/iterations", "state/loss_scale", "state/total_steps"} <= names
    assert not any(name.startswith("momentum/hidden_bn/moving") for name in names)
    _, step = make("adamw")
    assert {"m/hidden/kernel", "v/hidden/kernel"} <= set(step.state.tensors())


def test_averaged_weights_come_and_go_bit_for_bit():
    task, step = make()
    run(task, step, 3)
    before = snapshot(step)
    averages = {name: value.numpy() for name, value in step.state.averages().items()}
    with step.state.averaged_weights():
        for variable in task.model.variables:
            expected = averages[variable.name.removesuffix(":0")]
            np.testing.assert_array_equal(variable.numpy(), expected)
    assert_equal_bits(before, snapshot(step))


def test_an_average_that_is_not_a_number_does_not_reach_the_weights():
    task, step = make()
    run(task, step, 1)
    before = {v.name: v.numpy() for v in task.model.variables}
    average = step.state.buffers()["ema"]
    average.assign(tf.fill(average.shape, np.nan))
    with pytest.raises(KeyError), step.state.averaged_weights():
        raise KeyError("an evaluation that fails")
    for variable in task.model.variables:
        np.testing.assert_array_equal(variable.numpy(), before[variable.name])


def test_loaded_weights_start_averages_and_master_copy():
    task, step = make()
    run(task, step, 2)
    for variable in task.model.variables:
        variable.assign(tf.fill(variable.shape, 0.25))
    step.state.restart_from_model()
    for value in step.state.averages().values():
        np.testing.assert_array_equal(value, np.full(value.shape, 0.25, np.float32))
    for piece in step.state.layout.split(step.state.weights):
        np.testing.assert_array_equal(piece, np.full(piece.shape, 0.25, np.float32))
    assert float(tf.reduce_sum(step.state.weights)) == pytest.approx(
        0.25 * sum(v.shape.num_elements() for v in step.state.trained)
    )


def test_integer_variables_are_kept_as_they_are():
    task, _ = make()
    counter = tf.Variable(7, dtype=tf.int64, trainable=False, name="counter")
    task.model.counter = counter
    config = OptimConfig(moving_average_decay=0.9)
    state = TrainState(task, config, PLAN, dynamic_loss_scale=False)
    assert "model/counter" in state.tensors() and "ema/counter" not in state.tensors()
    with state.averaged_weights():
        assert int(counter) == 7
    state.equalise()
    assert int(counter) == 7
