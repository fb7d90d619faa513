"""Whether XLA compiles, and the cache of compiled programs that changes results."""

import types

import pytest
import tensorflow as tf

from engine.config.fields import ConfigError
from engine.start.process import chooses_xla

CACHE = "--tf_xla_auto_jit=0 --tf_xla_persistent_cache_directory=/cache"


@pytest.fixture
def choose(monkeypatch):
    """Chooses for a setting of use_xla, where there is a GPU or none, with a debug run or none."""

    def choose(use_xla, *, gpu, debug=False, xla_flags=""):
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU"] if gpu else [])
        monkeypatch.setenv("TF_XLA_FLAGS", xla_flags)
        train, runtime = types.SimpleNamespace(debug=debug), types.SimpleNamespace(use_xla=use_xla)
        return chooses_xla(types.SimpleNamespace(train=train, runtime=runtime))

    return choose


@pytest.mark.parametrize("gpu", [True, False])
def test_xla_is_on_by_itself_where_there_is_a_gpu(choose, gpu):
    assert choose(None, gpu=gpu) == gpu
    assert choose(True, gpu=gpu) and not choose(False, gpu=gpu)
    assert not choose(True, gpu=gpu, debug=True)


def test_kept_programs_are_refused_on_a_cpu_and_warned_of_on_a_gpu(choose, capfd):
    with pytest.raises(ConfigError, match="tf_xla_persistent_cache_directory: .*other losses"):
        choose(True, gpu=False, xla_flags=CACHE)
    assert not choose(None, gpu=False, xla_flags=CACHE), "without XLA nothing is read back"
    assert choose(None, gpu=True, xla_flags=CACHE)
    assert "WARNING: TF_XLA_FLAGS has " in capfd.readouterr().err
    choose(True, gpu=True, xla_flags="--tf_xla_auto_jit=0")
    assert not capfd.readouterr().err
