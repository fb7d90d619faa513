"""What is said when the device's memory does not do."""

import pytest
import tensorflow as tf
from absl import flags
from engine_tiny_family import TinyFamily, config_of

from engine.run import run_training
from engine.start import out_of_memory
from engine.start.out_of_memory import OutOfMemoryError


def configured(folder, **values):
    return config_of(folder, num_epochs=1, skip_test=True, **values)


class FullFamily(TinyFamily):
    """A family whose first step does not fit, or whose first evaluation or validation."""

    def __init__(self, where="step"):
        super().__init__()
        self._where = where

    def make_task(self, config, **options):
        task = super().make_task(config, **options)
        losses = task.losses

        def full(*_, **__):
            raise tf.errors.ResourceExhaustedError(
                None, None, "Out of memory while trying to allocate 12345678 bytes."
            )

        def full_losses(batch, *, training, seed=None):
            is_full = training == (self._where == "step")
            return full() if is_full else losses(batch, training=training, seed=seed)

        if self._where == "evaluation":
            task.predict = full
        else:
            task.losses = full_losses
        return task


def test_a_step_that_does_not_fit_ends_the_run_with_advice(tmp_path):
    config = configured(tmp_path, batch_size=6, gradient_accumulation=2)
    with pytest.raises(OutOfMemoryError) as raised:
        run_training(config, FullFamily())
    said = str(raised.value)
    assert "tiny at 1x4, 6 images per rank and step, float32, asked for 12345678 bytes" in said
    assert "--batch_size=3 --gradient_accumulation=4" in said and "--remat" in said
    assert "--amp" in said


@pytest.mark.parametrize("where", ["evaluation", "validation"])
def test_an_evaluation_that_does_not_fit_says_so_while_training_too(tmp_path, where):
    config = config_of(tmp_path, num_epochs=1, eval_batch_size=6, validate=where == "validation")
    with pytest.raises(OutOfMemoryError, match="6 images per evaluation step") as raised:
        run_training(config, FullFamily(where))
    assert str(raised.value).endswith("Try --eval_batch_size=3, or a smaller image_size")


@pytest.mark.parametrize(
    ("names", "flag"),
    [(["batch_size", "eval_batch_size"], "eval_batch_size"), (["batch_size"], "batch_size")],
)
def test_the_flag_is_one_that_the_program_has(tmp_path, monkeypatch, names, flag):
    values = flags.FlagValues()
    for name in names:
        flags.DEFINE_integer(name, 8, "Images.", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    config = configured(tmp_path, eval_batch_size=8)
    said = out_of_memory.advice(config, "", training=False)
    assert f"Try --{flag}=4," in said


@pytest.mark.parametrize(
    ("batch", "expected"), [(200, "--batch_size=100"), (9, "--batch_size=3"), (1, "")]
)
def test_the_global_batch_stays(tmp_path, batch, expected):
    config = configured(tmp_path, batch_size=batch)
    said = out_of_memory.advice(config, "OOM when allocating tensor", training=True)
    assert expected in said and ("--batch_size" in said) == (batch > 1)


def test_evaluations_have_their_own_batch(tmp_path):
    config = configured(tmp_path, eval_batch_size=128)
    said = out_of_memory.advice(config, "failed to allocate 1.5GiB", training=False)
    assert "128 images per evaluation step" in said and "asked for 1.5GiB" in said
    assert "--eval_batch_size=64, or a smaller image_size" in said
    single = configured(tmp_path, eval_batch_size=1)
    said = out_of_memory.advice(single, "failed to allocate 7 bytes", training=False)
    assert "1 images per evaluation step" in said and said.endswith("Try a smaller image_size")


def test_remedies_are_none_that_the_run_has_or_does_not_heed(tmp_path):
    def remedies(**values):
        config = configured(tmp_path, batch_size=1, **values)
        return out_of_memory.advice(config, "", training=True).partition("Try ")[2].split(", ")

    remat, rest = "--remat (recomputes the backbone's blocks)", "a smaller image_size or model"
    assert remedies(amp=False) == [remat, "--amp", rest]
    assert remedies(precision="float32") == [remat, "--precision=mixed_float16", rest]
    assert remedies(amp=True, remat=True) == [rest]


def test_deterministic_kernels_are_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    for deterministic in (False, True):
        config = configured(tmp_path / str(deterministic), deterministic=deterministic)
        run_training(config, TinyFamily())
        assert len(asked) == int(deterministic)


def test_a_full_disk_is_no_lack_of_memory(tmp_path):
    told = out_of_memory.explained(configured(tmp_path))
    with pytest.raises(OSError, match="No space left on device") as raised, told:
        tf.io.write_file("/dev/full", "x")
    assert raised.value.filename == "/dev/full"
