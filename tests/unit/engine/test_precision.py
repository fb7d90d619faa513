"""Policies and the dynamic loss scale."""

import pytest
import tensorflow as tf

from engine.config.fields import ConfigError
from engine.config.settings import RuntimeConfig
from engine.optim.precision import LossScale, policy_name


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"amp": True}, "mixed_float16"),
        ({"amp": False}, "float32"),
        ({"amp": True, "precision": "float32"}, "float32"),
        ({"amp": False, "precision": "mixed_bfloat16"}, "mixed_bfloat16"),
    ],
)
def test_policies(settings, expected):
    assert policy_name(RuntimeConfig(**settings)) == expected


def test_half_precision_is_for_accelerators(monkeypatch):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
    assert policy_name(RuntimeConfig()) == "float32"
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])
    assert policy_name(RuntimeConfig()) == "mixed_float16"


def test_unknown_policy_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'mixed_float16'"):
        policy_name(RuntimeConfig(precision="mixed_fp16"))


@pytest.mark.parametrize("use_xla", [False, True])
def test_scale_doubles_after_good_steps_and_halves_on_overflow(use_xla):
    scale = LossScale(32768.0, dynamic=True)
    update = tf.function(scale.update, jit_compile=use_xla or None)
    good, bad = tf.constant(True), tf.constant(False)
    scale.good_steps.assign(1997)
    update(good)
    update(good)
    assert (float(scale.value), int(scale.good_steps)) == (32768.0, 1999)
    update(good)
    assert (float(scale.value), int(scale.good_steps)) == (65536.0, 0)
    update(good)
    update(bad)
    assert (float(scale.value), int(scale.good_steps)) == (32768.0, 0)


def test_scale_does_not_fall_below_one():
    scale = LossScale(2.0, dynamic=True)
    for _ in range(5):
        scale.update(tf.constant(False))
    assert float(scale.value) == 1.0


def test_without_scaling_it_stays_one():
    scale = LossScale(32768.0, dynamic=False)
    scale.good_steps.assign(1999)
    for finite in (True, False):
        scale.update(tf.constant(finite))
        assert float(scale.value) == 1.0
