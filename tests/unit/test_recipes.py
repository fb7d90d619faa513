"""Recipes hold the documented numbers, and every run of theirs gets the documented rate."""

from pathlib import Path

import pytest
import tensorflow as tf
from own_files import own_files

from efficientdet.settings import base_config, preset, validate
from engine.config.fields import override
from engine.config.recipe_yaml import read_yaml
from engine.optim import schedules
from engine.optim.plan import check_settings, make_plan

CONFIGS = Path(__file__).resolve().parents[2] / "efficientdet" / "configs"

# The reference's scripts: ranks, batch, evaluation batch, epochs, rate, warm-up epochs, momentum,
# decay of the average, mixed precision, training mode.
DOCUMENTED = {
    "d0_coco_8xa100_amp": (8, 200, 10, 400, 2.2, 25, 0.93, 0.999, True, "traineval"),
    "d0_coco_8xa100_tf32": (8, 104, 104, 400, 1.1, 25, 0.93, 0.999, False, "train"),
    "d0_coco_8xv100_amp": (8, 64, 64, 300, 0.7, 5, 0.9, 0.9999, True, "traineval"),
    "d0_coco_8xv100_fp32": (8, 40, 40, 300, 0.4, 5, 0.9, 0.9999, False, "traineval"),
    "d0_coco_32xv100_amp": (32, 64, 64, 350, 1.5, 90, 0.95, 0.999, True, "traineval"),
    "d0_coco_32xv100_fp32": (32, 40, 40, 350, 1.0, 90, 0.95, 0.999, False, "traineval"),
}
# What follows from them: global batch, steps per epoch, steps of warm-up, of the schedule, until
# the stop; rate after 200 and after 300 epochs.
DERIVED = {
    "d0_coco_8xa100_amp": (1600, 75, 1875, 30000, 22500, 1.215, 0.364),
    "d0_coco_8xa100_tf32": (832, 145, 3625, 58000, 43500, 0.608, 0.182),
    "d0_coco_8xv100_amp": (512, 235, 1175, 70500, 70500, 0.180, 0),
    "d0_coco_8xv100_fp32": (320, 375, 1875, 112500, 112500, 0.103, 0),
    "d0_coco_32xv100_amp": (2048, 59, 5310, 20650, 17700, 0.930, 0.133),
    "d0_coco_32xv100_fp32": (1280, 94, 8460, 32900, 28200, 0.620, 0.089),
}
# Ours: each has the settings of the documented recipe of the same global batch.
OURS = {"d0_coco_8xh100_amp": "d0_coco_8xa100_amp", "d0_coco_8xh200_amp": "d0_coco_32xv100_amp"}
RANKS = {**{name: row[0] for name, row in DOCUMENTED.items()}, **dict.fromkeys(OURS, 8)}


def load(name, preset_name="nvidia"):
    config = override(
        base_config("efficientdet-d0"),
        preset(preset_name, model_name="efficientdet-d0"),
        source="preset",
    )
    return override(config, read_yaml(CONFIGS / f"{name}.yaml"), source=name)


def plan_of(name, *, ranks=None, **train):
    config = override(load(name), train, source="test")
    return make_plan(
        config.train, config.optim, num_examples=117266, num_ranks=ranks or RANKS[name]
    )


def test_there_are_these_recipes_and_no_others():
    assert {path.stem for path in own_files("efficientdet/configs/*.yaml")} == set(RANKS)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_hyperparameters_are_the_documented_ones(name):
    config, (ranks, *expected) = load(name), DOCUMENTED[name]
    train, optim = config.train, config.optim
    assert [
        train.batch_size,
        config.eval.eval_batch_size,
        train.num_epochs,
        optim.learning_rate,
        optim.lr_warmup_epoch,
        optim.momentum,
        optim.moving_average_decay,
        config.runtime.amp,
        train.training_mode,
    ] == expected
    assert optim.lr_batch_size == ranks * train.batch_size
    # What the reference's scripts leave at its defaults.
    assert train.num_examples_per_epoch == 120000
    assert (optim.lr_warmup_init, optim.weight_decay) == (1e-4, 4e-5)
    assert (optim.clip_gradients_norm, optim.lr_decay_method) == (10.0, "cosine")
    assert (train.checkpoint_period, config.eval.eval_samples) == (10, 5000)


@pytest.mark.parametrize("name", DERIVED)
def test_schedule_is_the_documented_one(name):
    batch, per_epoch, warm_up, total, stop, rate_200, rate_300 = DERIVED[name]
    plan, optim = plan_of(name), load(name).optim
    assert plan.global_batch_size == batch
    assert (plan.steps_per_epoch, plan.warmup_steps, plan.total_steps) == (
        per_epoch,
        warm_up,
        total,
    )
    assert plan.stop_epoch == 300 and plan.stop_epoch * per_epoch == stop
    assert plan.learning_rate == pytest.approx(DOCUMENTED[name][4], rel=1e-12)
    for step, expected in (
        (0, 1e-4),
        (warm_up, DOCUMENTED[name][4]),
        (200 * per_epoch, rate_200),
        (300 * per_epoch, rate_300),
    ):
        rate = schedules.learning_rate_at(
            tf.constant(step),
            tf.constant(total),
            method=optim.lr_decay_method,
            base=plan.learning_rate,
            warmup_init=optim.lr_warmup_init,
            warmup_steps=tf.constant(warm_up),
        )
        assert float(rate) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("name", OURS)
def test_ours_follow_the_documented_recipe_of_equal_batch(name):
    ours, theirs = plan_of(name), plan_of(OURS[name])
    assert ours == theirs
    assert load(name).optim == load(OURS[name]).optim
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert "Ours, not from the references" in text and "The reference reports" not in text


@pytest.mark.parametrize("name", RANKS)
def test_settings_can_work(name):
    for preset_name in ("nvidia", ""):
        config = load(name, preset_name)
        validate(config)
        check_settings(config.train, config.optim, config.eval)


def test_fewer_ranks_lower_the_rate():
    assert plan_of("d0_coco_8xa100_amp", ranks=4).learning_rate == pytest.approx(1.1)
    small = plan_of("d0_coco_8xa100_amp", ranks=2, batch_size=4)
    assert small.learning_rate == pytest.approx(2.2 * 8 / 1600)


@pytest.mark.parametrize("name", RANKS)
def test_the_head_says_how_to_start_it_and_what_to_expect(name):
    head = (CONFIGS / f"{name}.yaml").read_text().split("\noptim:")[0]
    assert all(line.startswith("# ") for line in head.splitlines())
    assert "bash scripts/D0/convergence-" in head or "sbatch -N 4 slurm/convergence-" in head
    assert ("The reference reports: AP 0.3" in head) == (name in DOCUMENTED)
