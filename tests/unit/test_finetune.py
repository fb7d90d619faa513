"""--recipe=finetune: what follows from the length of a run and the size of its set."""

import dataclasses

import pytest
from absl import flags

import families
from detector.finetune import shared_settings
from engine.config.fields import ConfigError, override
from engine.optim.plan import make_plan
from object_detection.records.tfrecord_file import write_records

WEIGHTS = {"backbone_init": "pip:x"}


def finetuned(model="efficientdet-d0", *, num_images=200, ranks=1, **values):
    """Returns the configuration with the recipe, as a command line with these settings gives it."""
    config = override(families.base_config(model), {**WEIGHTS, **values}, source="test")
    settings = families._settings_of(model).finetune_settings(
        config, num_images=num_images, num_ranks=ranks
    )
    return override(config, settings, source="recipe")


def test_a_short_run_on_a_small_set():
    config = finetuned(batch_size=4, num_epochs=20)  # 1000 steps, a window of 50
    assert config.optim.optimizer == "adamw"
    assert (config.optim.learning_rate, config.optim.lr_batch_size) == (0.003, 0)
    assert config.optim.moving_average_decay == 0.98
    assert config.model.bn_momentum == 0.92
    assert (config.data.jitter_min, config.data.jitter_max) == (0.8, 1.25)
    assert config.optim.var_freeze_expr == "(stem|stack_[0-2])"
    plan = make_plan(config.train, config.optim, num_examples=200, num_ranks=1)
    assert (plan.total_steps, plan.warmup_steps) == (1000, 50)


def test_a_long_run_on_a_large_set():
    config = finetuned(batch_size=4, num_images=16000, num_epochs=200, pretrained_ckpt="x")
    # 800 000 steps: the rate falls by the fourth root of 800, and is half of that.
    assert config.optim.learning_rate == pytest.approx(0.003 / 800**0.25 / 2, rel=0.05)
    assert config.optim.moving_average_decay == 0.9998
    assert config.model.bn_momentum == 0.99
    assert (config.data.jitter_min, config.data.jitter_max) == (0.1, 2.0)
    assert config.optim.var_freeze_expr == ""
    plan = make_plan(config.train, config.optim, num_examples=16000, num_ranks=1)
    assert plan.warmup_steps == 1000


@pytest.mark.parametrize(
    ("num_images", "frozen"),
    [
        (999, "(stem|stack_[0-2])"),
        (1000, "(stem|stack_[0-1])"),
        (9999, "(stem|stack_[0-1])"),
        (10000, ""),
    ],
)
def test_the_smaller_the_set_the_more_is_frozen(num_images, frozen):
    assert finetuned(num_images=num_images).optim.var_freeze_expr == frozen


def test_the_rate_grows_with_the_root_of_the_global_batch():
    one = finetuned(batch_size=4, num_epochs=2).optim.learning_rate
    assert finetuned(batch_size=8, num_epochs=2, ranks=2).optim.learning_rate == 2 * one
    many = finetuned(batch_size=4, gradient_accumulation=4, num_epochs=2)
    assert many.optim.learning_rate == 2 * one


def test_minutes_stand_for_steps():
    timed = finetuned(batch_size=4, num_epochs=10000, train_minutes=10.0)
    assert timed.optim.moving_average_decay == pytest.approx(1 - 1 / 30, abs=1e-4)
    assert finetuned(batch_size=4, train_minutes=0.005).optim.moving_average_decay == 0.9
    endless = finetuned(batch_size=4, num_epochs=20, train_minutes=1e9)
    assert endless.optim == finetuned(batch_size=4, num_epochs=20).optim


def test_the_scale_follows_how_often_an_image_is_seen_whatever_an_epoch_is():
    rare = finetuned(batch_size=4, num_epochs=100, num_examples_per_epoch=20).data  # 10 times
    assert (rare.jitter_min, rare.jitter_max) == (0.8, 1.25)
    often = finetuned(batch_size=4, num_epochs=2, num_examples_per_epoch=120000).data
    assert (often.jitter_min, often.jitter_max) == (0.1, 2.0)


def test_mask_rcnn_keeps_what_its_model_freezes_unless_the_set_is_large():
    small = finetuned("maskrcnn-r50-fpn", num_images=9999)
    assert small.model.freeze_at == families.base_config("maskrcnn-r50-fpn").model.freeze_at
    assert finetuned("maskrcnn-r50-fpn", num_images=10000).model.freeze_at == 1
    assert (small.optim.clip_gradients_norm, small.solver.bias_lr_factor) == (10.0, 1.0)
    from maskrcnn.validation import validate

    validate(small)


def test_without_weights_it_is_refused():
    config = families.base_config("efficientdet-d0")
    with pytest.raises(ConfigError, match="--recipe=finetune starts from weights.*--backbone_init"):
        shared_settings(config, num_images=9, num_ranks=1, base_rate=0.003)


def test_nothing_tells_the_size_of_the_set(tmp_path):
    config = families.base_config("efficientdet-d0")
    with pytest.raises(ConfigError, match="but none is named: use --data or --training"):
        families._finetune(1, config)
    write_records(tmp_path / "train-00000-of-00001.tfrecord", [b""])
    data = dataclasses.replace(config.data, training_file_pattern=f"{tmp_path}/train-*")
    with pytest.raises(ConfigError, match="train-. has no data card"):
        families._finetune(1, dataclasses.replace(config, data=data))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data=d", "--backbone_init=b"], "finetune"),
        (["--data=d", "--pretrained_ckpt=b"], "finetune"),
        (["--data=d"], ""),
        (["--data=d", "--backbone_init=b", "--model_name=maskrcnn-r50-fpn"], ""),
        (["--backbone_init=b"], ""),
        (["--data=d", "--backbone_init=b", "--recipe="], ""),
        (["--data=d", "--backbone_init=b", "--recipe=r.yaml"], "r.yaml"),
        (["--data=d", "--backbone_init=b", "--preset=nvidia"], ""),
    ],
)
def test_a_data_folder_with_weights_is_fine_tuned_unless_told_otherwise(words, expected):
    values = flags.FlagValues()
    for name in ("recipe", "preset", "config_file", "data", "backbone_init", "pretrained_ckpt"):
        flags.DEFINE_string(name, "", "", flag_values=values)
    flags.DEFINE_string("model_name", "efficientdet-d0", "", flag_values=values)
    values(["train.py", *words])
    assert families.chosen_recipe(values) == expected
