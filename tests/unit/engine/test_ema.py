"""Moving averages by their recurrence, batch-norm statistics included."""

import numpy as np
import pytest
import tensorflow as tf
from engine_tiny_step import make_step, run_steps
from engine_tiny_task import FOUR_EPOCHS, TinyTask
from weight_samples import values_of

from engine.config.settings import OptimConfig
from engine.optim import ema

PLAN = FOUR_EPOCHS._replace(learning_rate=0.3, total_steps=30, stop_epoch=5)


@pytest.mark.parametrize(("optimizer", "use_xla"), [("sgd", True), ("adamw", False)])
def test_averages_follow_the_recurrence(optimizer, use_xla):
    # Decays 2/11, 3/12, 4/13, ... until 0.5 is reached at the eighth update.
    config = OptimConfig(optimizer=optimizer, moving_average_decay=0.5)
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization)
    step = make_step(task, config, PLAN, use_xla=use_xla)
    averages = {k: v.astype(np.float64) for k, v in values_of(task.model).items()}
    for t in range(1, 13):
        run_steps(step, 1)
        decay = min(0.5, (1 + t) / (10 + t))
        for name, value in values_of(task.model).items():
            averages[name] -= (1 - decay) * (averages[name] - value)
    found = {name: value.numpy() for name, value in step.state.averages().items()}
    assert found.keys() == averages.keys()
    assert {"hidden_bn/moving_mean", "hidden_bn/moving_variance"} <= set(found)
    for name, value in found.items():
        np.testing.assert_allclose(value, averages[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_frozen_weights_and_their_statistics_are_averaged_too():
    config = OptimConfig(moving_average_decay=0.5, var_freeze_expr="hidden/")
    task = TinyTask(batch_norm=tf.keras.layers.BatchNormalization)
    step = make_step(task, config, PLAN)
    frozen = task.model.get_layer("hidden").kernel.numpy()
    run_steps(step, 4)
    averages = step.state.averages()
    np.testing.assert_allclose(averages["hidden/kernel"], frozen, rtol=1e-6)
    assert not np.allclose(averages["hidden_bn/moving_mean"], 0.0)


@pytest.mark.parametrize("decay", [0.0, None])
def test_no_averages(decay):
    step = make_step(TinyTask(), OptimConfig(moving_average_decay=decay), PLAN)
    assert not step.state.averaging
    assert set(step.state.buffers()) == {"momentum"}


@pytest.mark.both_stacks
@pytest.mark.parametrize("use_xla", [False, True])
def test_equal_to_the_last_bit_with_tensorflow_addons(use_xla):
    tfa_optimizers = pytest.importorskip("tensorflow_addons").optimizers

    class Reference(tfa_optimizers.MovingAverage):
        def _get_decay(self, step):  # the package counts the first update as 0
            step = tf.cast(step, tf.float32) + 1.0
            return tf.minimum(0.9, (1.0 + step) / (10.0 + step))

    def legacy_sgd():
        return tf.keras.optimizers.legacy.SGD(0.3, momentum=0.9)

    rng = np.random.default_rng(3)
    start = tf.constant(rng.normal(size=[64, 128]), tf.float32)
    ours, theirs = tf.Variable(start), tf.Variable(start)
    average = tf.Variable(start)
    reference, optimizer = Reference(legacy_sgd()), legacy_sgd()
    reference._create_all_weights([theirs])
    optimizer._create_all_weights([ours])

    @tf.function(jit_compile=use_xla or None)
    def update_both(gradient):
        reference.apply_gradients([(gradient, theirs)])
        optimizer.apply_gradients([(gradient, ours)])
        decay = ema.decay_of_update(optimizer.iterations, limit=0.9)
        ema.move_average(average, ours, decay)

    for _ in range(100):  # the decay reaches its limit at the 81st
        update_both(tf.constant(rng.normal(size=[64, 128]), tf.float32))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(average, reference.get_slot(theirs, "average"))
    assert not np.array_equal(average, ours)
