"""The state: into checkpoints and back bit for bit, and out of the way of an evaluation."""

import numpy as np
import pytest
import tensorflow as tf
from engine_tiny_step import make_step, run_steps, tensors_of
from engine_tiny_task import FOUR_EPOCHS, TinyTask
from weight_samples import values_of

from engine.config.settings import OptimConfig
from engine.files import checkpoint
from engine.step import TrainStep
from engine.train_state import TrainState

PLAN = FOUR_EPOCHS._replace(warmup_steps=3)


def make(optimizer: str = "sgd") -> TrainStep:
    config = OptimConfig(optimizer=optimizer, moving_average_decay=0.9)
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization, noise=0.3)
    return make_step(task, config, PLAN, dynamic=True, seed=5)


def assert_equal_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_equals_an_unbroken_one(optimizer, tmp_path):
    unbroken = make(optimizer)
    numbers = run_steps(unbroken, 9)

    first = make(optimizer)
    run_steps(first, 4)
    prefix = checkpoint.save(tmp_path / "ckpt-00000004", first.state.tensors(), {})
    resumed = make(optimizer)
    run_steps(resumed, 1)  # whatever was there before must not matter
    resumed.state.assign(checkpoint.load(prefix, resumed.state.tensors()))
    assert_equal_bits(tensors_of(resumed), tensors_of(first))
    np.testing.assert_array_equal(numbers[4:], run_steps(resumed, 5))
    assert_equal_bits(tensors_of(resumed), tensors_of(unbroken))


def test_names_in_a_checkpoint():
    step = make()
    names = set(step.state.tensors())
    assert {"model/hidden/kernel", "momentum/out/bias", "ema/hidden_bn/moving_mean"} <= names
    assert {name for name in names if name.startswith("state/")} == {
        *("state/step", "state/total_steps", "state/warmup_steps", "state/iterations"),
        *("state/loss_scale", "state/loss_scale_good_steps"),
    }
    assert not any(name.startswith("momentum/hidden_bn/moving") for name in names)
    step = make("adamw")
    assert {"m/hidden/kernel", "v/hidden/kernel"} <= set(step.state.tensors())


def test_averaged_weights_come_and_go_bit_for_bit():
    step = make()
    run_steps(step, 3)
    before = tensors_of(step)
    averages = {name: value.numpy() for name, value in step.state.averages().items()}
    with step.state.averaged_weights():
        assert_equal_bits(values_of(step.state.model), averages)
    assert_equal_bits(before, tensors_of(step))


def test_an_average_that_is_not_a_number_does_not_reach_the_weights():
    step = make()
    run_steps(step, 1)
    before = values_of(step.state.model)
    average = step.state.buffers()["ema"]
    average.assign(tf.fill(average.shape, np.nan))
    with pytest.raises(KeyError), step.state.averaged_weights():
        raise KeyError("an evaluation that fails")
    assert_equal_bits(values_of(step.state.model), before)


def test_loaded_weights_start_averages_and_master_copy():
    step = make()
    run_steps(step, 2)
    for variable in step.state.model.variables:
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
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization)
    counter = tf.Variable(7, dtype=tf.int64, trainable=False, name="counter")
    task.model.counter = counter
    config = OptimConfig(moving_average_decay=0.9)
    state = TrainState(task, config, PLAN, dynamic_loss_scale=False)
    assert "model/counter" in state.tensors() and "ema/counter" not in state.tensors()
    assert not any("loss_scale" in name for name in state.tensors())  # which never moves
    with state.averaged_weights():
        assert int(counter) == 7
    state.equalise()
    assert int(counter) == 7
