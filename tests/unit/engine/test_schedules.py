"""Learning rates by hand; those of the reference's recipes: `test_recipes`."""

import functools
import math

import pytest
import tensorflow as tf
from engine_tiny_task import FOUR_EPOCHS

from engine.config.settings import OptimConfig
from engine.optim.schedules import learning_rate_at


def rate(
    step, *, total=100, base=1.0, warm=0, per_epoch=1, fitted=None, use_xla=False, **settings
) -> float:
    """`fitted`: the schedule's length in a timed run, other than the plan's `total`."""
    config = OptimConfig(**{"lr_warmup_init": 0.0, **settings})
    plan = FOUR_EPOCHS._replace(learning_rate=base, steps_per_epoch=per_epoch, total_steps=total)
    lengths = {
        "total_steps": tf.constant(fitted or total),
        "warmup_steps": tf.constant(warm, tf.int64),
    }
    at = functools.partial(learning_rate_at, config=config, plan=plan, **lengths)
    return float(tf.function(at, jit_compile=use_xla or None)(tf.constant(step, tf.int64)))


def test_warmup_is_linear_and_joins_the_decay():
    settings = {"total": 50, "base": 2.0, "lr_warmup_init": 0.5, "warm": 10}
    assert [rate(s, **settings) for s in (0, 5, 10)] == pytest.approx([0.5, 1.25, 2.0])
    assert rate(9, **settings) < rate(10, **settings) > rate(11, **settings)


def test_cosine_by_hand():
    expected = [0.5 * (1.0 + math.cos(math.pi * s / 100)) for s in (0, 25, 50, 100)]
    assert [rate(s) for s in (0, 25, 50, 100)] == pytest.approx(expected, abs=1e-6)
    assert rate(150) == pytest.approx(0.0, abs=1e-7)  # and stays
    # A warm-up of the whole schedule, and of all but a step.
    assert [rate(step, total=10, warm=10) for step in (10, 11)] == pytest.approx([1.0, 0.0])
    assert [rate(step, total=11, warm=10) for step in (10, 11)] == pytest.approx([1.0, 0.0])


def test_stepwise_drops_at_the_first_step_of_an_epoch():
    settings = {"total": 59 * 350, "per_epoch": 59, "lr_decay_method": "stepwise"}
    for epoch, before, after in ((200, 1.0, 0.1), (250, 0.1, 0.01)):
        assert rate(59 * epoch - 1, **settings) == pytest.approx(before)
        assert rate(59 * epoch, **settings) == pytest.approx(after)


def test_drops_keep_their_share_of_a_timed_run():
    settings = {"total": 120, "per_epoch": 10, "fitted": 300, "lr_decay_method": "stepwise"}
    settings |= {"lr_step_epochs": (8.0, 10.0), "lr_step_factor": 0.5}
    # After 2/3 and 5/6 of 300 steps.
    found = [rate(step, **settings) for step in (199, 200, 249, 250, 400)]
    assert found == pytest.approx([1.0, 0.5, 0.5, 0.25, 0.25])


def test_polynomial_by_hand():
    settings = {"lr_decay_method": "polynomial", "total": 110, "warm": 10, "lr_poly_power": 0.9}
    assert rate(60, **settings) == pytest.approx(0.5**0.9, rel=1e-5)
    assert rate(110, **settings) == 0.0


def test_it_compiles():
    settings = {"total": 90, "warm": 10}
    assert rate(30, use_xla=True, **settings) == pytest.approx(rate(30, **settings), rel=1e-6)


def test_constant_warm_up_jumps_to_the_rate():
    settings = {"lr_decay_method": "stepwise", "total": 10, "lr_warmup_init": 0.1, "warm": 4}
    settings |= {"lr_warmup_method": "constant", "lr_step_epochs": ()}
    assert [rate(step, **settings) for step in (0, 3, 4)] == pytest.approx([0.1, 0.1, 1.0])
