"""Learning rates by hand; those of the reference's recipes: `test_recipes`."""

import math

import pytest
import tensorflow as tf

from engine.optim.schedules import learning_rate_at


def rate(step, *, total=100, method="cosine", base=1.0, init=0.0, warm=0, **options) -> float:
    options = {"warmup_init": init, "warmup_steps": tf.constant(warm, tf.int64), **options}
    step, total = tf.constant(step, tf.int64), tf.constant(total, tf.int64)
    return float(learning_rate_at(step, total, method=method, base=base, **options))


def test_warmup_is_linear_and_joins_the_decay():
    settings = {"total": 50, "base": 2.0, "init": 0.5, "warm": 10}
    assert [rate(s, **settings) for s in (0, 5, 10)] == pytest.approx([0.5, 1.25, 2.0])
    assert rate(9, **settings) < rate(10, **settings) > rate(11, **settings)


def test_cosine_by_hand():
    expected = [0.5 * (1.0 + math.cos(math.pi * s / 100)) for s in (0, 25, 50, 100)]
    assert [rate(s) for s in (0, 25, 50, 100)] == pytest.approx(expected, abs=1e-6)
    assert rate(150) == pytest.approx(0.0, abs=1e-7)  # and stays


def test_stepwise_drops_at_the_first_step_of_an_epoch():
    per_epoch, epochs = 59, 350
    shares = [200 * per_epoch / (per_epoch * epochs), 250 * per_epoch / (per_epoch * epochs)]
    settings = {"total": per_epoch * epochs, "method": "stepwise", "drop_shares": shares}
    for epoch, before, after in ((200, 1.0, 0.1), (250, 0.1, 0.01)):
        first = epoch * per_epoch
        assert rate(first - 1, **settings) == pytest.approx(before)
        assert rate(first, **settings) == pytest.approx(after)


def test_polynomial_by_hand():
    settings = {"method": "polynomial", "total": 110, "warm": 10, "power": 0.9}
    assert rate(60, **settings) == pytest.approx(0.5**0.9, rel=1e-5)
    assert rate(110, **settings) == 0.0


def test_unknown_method():
    with pytest.raises(ValueError, match="lr_decay_method"):
        rate(0, method="linear")


def test_it_compiles():
    compiled = tf.function(learning_rate_at, jit_compile=True)
    settings = {"method": "cosine", "base": 1.0, "warmup_init": 0.0}
    found = compiled(tf.constant(30), tf.constant(90), warmup_steps=tf.constant(10), **settings)
    assert float(found) == pytest.approx(rate(30, total=90, warm=10), rel=1e-6)


def test_constant_warm_up_jumps_to_the_rate():
    settings = {"method": "stepwise", "total": 10, "init": 0.1, "warm": 4}
    rates = [rate(step, warmup_method="constant", **settings) for step in (0, 3, 4)]
    assert rates == pytest.approx([0.1, 0.1, 1.0])
    with pytest.raises(ValueError, match="lr_warmup_method"):
        rate(0, warmup_method="none", **settings)
