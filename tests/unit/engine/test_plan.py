"""Batches, rates, lengths and epochs, and the reference's modes; its recipes: `test_recipes`."""

import dataclasses

import pytest

from engine.config.fields import ConfigError
from engine.config.settings import DataConfig, EvalConfig, OptimConfig, TrainConfig
from engine.optim.plan import (
    check_settings,
    evaluates_after,
    evaluates_at_end,
    make_plan,
    needs_evaluation_data,
    stop_epoch,
)


def test_rate_is_scaled_once_and_said():
    optim = OptimConfig(learning_rate=0.08, lr_batch_size=64, gradient_accumulation=2)
    plan = make_plan(TrainConfig(batch_size=32), optim, num_examples=1000, num_ranks=4)
    assert plan.global_batch_size == 256
    assert plan.learning_rate == pytest.approx(0.32)
    assert plan.steps_per_epoch == 4
    line = plan.describe(optim)
    assert "global batch 256" in line and "0.32 (0.08 per 64 images)" in line
    as_given = dataclasses.replace(optim, lr_batch_size=0)
    assert "0.08 as given" in plan.describe(as_given)
    assert "schedule over 1200 steps, stop after epoch 300" in line
    timed = plan.describe(optim, train_minutes=7.5)
    assert "schedule fitted to 7.5 minutes" in timed and "epoch " not in timed


def test_a_batch_larger_than_the_data_is_one_step():
    plan = make_plan(TrainConfig(batch_size=64), OptimConfig(), num_examples=5, num_ranks=2)
    assert (plan.steps_per_epoch, plan.total_steps) == (1, 300)


def test_an_epoch_of_fewer_images_than_there_are():
    train = TrainConfig(batch_size=25, num_epochs=3, num_examples_per_epoch=101)
    plan = make_plan(train, OptimConfig(lr_warmup_epoch=1.5), num_examples=1000, num_ranks=2)
    # 101 images are two batches of 50 and one more.
    assert (plan.steps_per_epoch, plan.total_steps, plan.warmup_steps) == (3, 9, 4)


def test_no_images():
    with pytest.raises(ConfigError, match="no image"):
        make_plan(TrainConfig(), OptimConfig(), num_examples=0, num_ranks=1)


def test_benchmark_is_one_epoch_of_its_steps():
    train = TrainConfig(benchmark=True, benchmark_steps=500)
    plan = make_plan(train, OptimConfig(), num_examples=10**5, num_ranks=8)
    assert (plan.steps_per_epoch, plan.stop_epoch) == (500, 1)
    assert not evaluates_at_end(train)
    assert not needs_evaluation_data(train, EvalConfig())


@pytest.mark.parametrize(
    ("mode", "epochs", "last"),
    [
        ("full", 400, 400),
        ("full", 50, 50),
        ("traineval", 300, 300),
        ("traineval", 400, 300),
        ("traineval", 50, 50),
        ("train", 400, 300),
        ("train", 350, 263),
        ("train", 300, 226),
        ("train", 4, 4),
        ("train300", 300, 300),
        ("train300", 400, 300),
        ("train300", 120, 120),
    ],
)
def test_stop_rules(mode, epochs, last):
    assert stop_epoch(TrainConfig(training_mode=mode, num_epochs=epochs)) == last


def test_stop_epoch_as_a_flag_goes_beyond_300():
    given = TrainConfig(num_epochs=600, stop_epoch=600, training_mode="traineval")
    assert stop_epoch(given) == 600
    assert stop_epoch(TrainConfig(num_epochs=600, stop_epoch=450, training_mode="train")) == 450
    assert stop_epoch(TrainConfig(num_epochs=20, stop_epoch=450)) == 20


def evaluations(train: TrainConfig, **evaluation) -> list[int]:
    settings = EvalConfig(**evaluation)
    return [e for e in range(1, stop_epoch(train) + 1) if evaluates_after(e, train, settings)]


def test_evaluations_of_the_modes():
    full = TrainConfig(num_epochs=400)
    assert evaluations(full) == [*range(200, 401, 10)]
    reference = dataclasses.replace(full, training_mode="traineval")
    assert evaluations(reference) == [*range(200, 301, 10)]
    for mode in ("train", "train300"):
        assert evaluations(dataclasses.replace(full, training_mode=mode)) == []
    assert evaluates_at_end(full)  # only if the last epoch had none
    assert evaluates_at_end(dataclasses.replace(full, training_mode="train"))
    assert not evaluates_at_end(dataclasses.replace(full, training_mode="train300"))
    short = TrainConfig(num_epochs=199, training_mode="train300")
    assert evaluates_at_end(short)
    assert not evaluates_at_end(dataclasses.replace(short, num_epochs=200))


def test_evaluation_flags_act_in_every_mode():
    assert evaluations(TrainConfig(), eval_start=290, eval_period=4) == [292, 296, 300]
    assert evaluations(TrainConfig(checkpoint_period=50), eval_start=1) == [*range(50, 301, 50)]
    quiet = TrainConfig(training_mode="train300")
    assert evaluations(quiet, eval_start=295, eval_period=5) == [295, 300]


def test_a_run_that_ends_before_epoch_200_is_evaluated_on_the_way():
    assert evaluations(TrainConfig(num_epochs=30)) == [10, 20, 30]
    assert evaluations(TrainConfig(num_epochs=199)) == [*range(10, 200, 10)]
    assert evaluations(TrainConfig(num_epochs=200)) == [200]
    assert evaluations(TrainConfig(num_epochs=3, checkpoint_period=1)) == [1, 2, 3]


def test_patience_needs_an_evaluation_within_the_run():
    train, impatient = TrainConfig(num_epochs=30), EvalConfig(patience=2, eval_period=1)
    check_settings(train, DataConfig(), dataclasses.replace(impatient, eval_start=30))
    check_settings(train, DataConfig(), EvalConfig(eval_start=31))
    with pytest.raises(ConfigError, match=r"patience=2: no evaluation .*--eval_start"):
        check_settings(train, DataConfig(), dataclasses.replace(impatient, eval_start=31))


def test_a_target_needs_evaluations():
    evaluation = EvalConfig(target_ap=0.3)
    check_settings(TrainConfig(), DataConfig(), evaluation)
    check_settings(TrainConfig(skip_test=True), DataConfig(), EvalConfig())
    with pytest.raises(ConfigError, match=r"--skip_test with target_ap=0\.3: .*leave one"):
        check_settings(TrainConfig(skip_test=True), DataConfig(), evaluation)


def test_which_runs_need_a_validation_set():
    quiet = TrainConfig(training_mode="train300")
    assert needs_evaluation_data(TrainConfig(), EvalConfig())
    assert not needs_evaluation_data(quiet, EvalConfig())
    assert needs_evaluation_data(quiet, EvalConfig(eval_start=300))
    first_alone = dataclasses.replace(quiet, num_epochs=1)
    assert needs_evaluation_data(first_alone, EvalConfig(eval_start=1, eval_period=1))
    stopped = dataclasses.replace(quiet, stop_epoch=1)
    assert needs_evaluation_data(stopped, EvalConfig(eval_start=1, eval_period=1))
    assert not needs_evaluation_data(stopped, EvalConfig(eval_start=2, eval_period=1))
    assert not needs_evaluation_data(quiet, EvalConfig(eval_start=301))
    assert needs_evaluation_data(dataclasses.replace(quiet, validate=True), EvalConfig())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training_mode": "eval"}, "training_mode='eval': expected .*did you mean 'traineval'"),
        ({"optimizer": "adam"}, "optimizer='adam': expected one of .*did you mean 'adamw'"),
        ({"lr_decay_method": "cos"}, "did you mean 'cosine'"),
        ({"lr_warmup_method": "none"}, "lr_warmup_method='none': expected one of"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
        ({"checkpoint_period": 0}, "checkpoint_period=0"),
        ({"log_steps": 0}, "log_steps=0"),
        ({"gradient_accumulation": 0}, "gradient_accumulation=0"),
        ({"eval_samples": 0}, "eval_samples=0"),
        ({"jitter_min": 3.0}, "jitter_min <= jitter_max, got 3 and 2"),
        ({"clip_gradients_norm": -1.0}, "clip_gradients_norm=-1.0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"moving_average_decay": 1.0}, "moving_average_decay=1.0: expected .* less than 1"),
    ],
)
def test_settings_that_cannot_work(change, words):
    def changed(part):
        names = {field.name for field in dataclasses.fields(part)}
        return dataclasses.replace(part, **{k: v for k, v in change.items() if k in names})

    with pytest.raises(ConfigError, match=words):
        changed(OptimConfig())
        check_settings(*map(changed, (TrainConfig(), DataConfig(), EvalConfig())))


def test_the_defaults_can_work():
    check_settings(TrainConfig(), DataConfig(), EvalConfig())
    check_settings(TrainConfig(), DataConfig(jitter_min=1.0, jitter_max=1.0), EvalConfig())
    assert OptimConfig(moving_average_decay=None).moving_average_decay is None


def test_without_tests_nothing_is_evaluated():
    train = TrainConfig(num_epochs=4, checkpoint_period=1, skip_test=True)
    evaluation = EvalConfig(eval_start=1)
    assert not any(evaluates_after(epoch, train, evaluation) for epoch in range(1, 5))
    assert not evaluates_at_end(train) and not needs_evaluation_data(train, evaluation)
