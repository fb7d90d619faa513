"""Recipes of both families hold the documented numbers, and every run of theirs gets its rate."""

from pathlib import Path

import pytest
import tensorflow as tf
from own_files import own_files

import families
from engine.config.fields import override
from engine.config.recipe_yaml import read_yaml
from engine.optim import schedules
from engine.optim.plan import check_settings, evaluates_after, make_plan
from maskrcnn.nvidia.pytorch_yaml import read_run

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {name: ROOT / name / "configs" for name in ("efficientdet", "maskrcnn")}
COCO_IMAGES = {"efficientdet": 117266, "maskrcnn": 118287}  # EfficientDet's are those with boxes

# The reference's scripts: ranks, batch, evaluation batch, epochs, rate, warm-up epochs, momentum,
# decay of the average, mixed precision, training mode.
D0 = {
    "d0_coco_8xa100_amp": (8, 200, 10, 400, 2.2, 25, 0.93, 0.999, True, "traineval"),
    "d0_coco_8xa100_tf32": (8, 104, 104, 400, 1.1, 25, 0.93, 0.999, False, "train"),
    "d0_coco_8xv100_amp": (8, 64, 64, 300, 0.7, 5, 0.9, 0.9999, True, "traineval"),
    "d0_coco_8xv100_fp32": (8, 40, 40, 300, 0.4, 5, 0.9, 0.9999, False, "traineval"),
    "d0_coco_32xv100_amp": (32, 64, 64, 350, 1.5, 90, 0.95, 0.999, True, "traineval"),
    "d0_coco_32xv100_fp32": (32, 40, 40, 350, 1.0, 90, 0.95, 0.999, False, "traineval"),
}
# What follows from them: global batch, steps per epoch, steps of warm-up, of the schedule, until
# the stop; rate after 200 and after 300 epochs.
D0_DERIVED = {
    "d0_coco_8xa100_amp": (1600, 75, 1875, 30000, 22500, 1.215, 0.364),
    "d0_coco_8xa100_tf32": (832, 145, 3625, 58000, 43500, 0.608, 0.182),
    "d0_coco_8xv100_amp": (512, 235, 1175, 70500, 70500, 0.180, 0),
    "d0_coco_8xv100_fp32": (320, 375, 1875, 112500, 112500, 0.103, 0),
    "d0_coco_32xv100_amp": (2048, 59, 5310, 20650, 17700, 0.930, 0.133),
    "d0_coco_32xv100_fp32": (1280, 94, 8460, 32900, 28200, 0.620, 0.089),
}
# Ours: each has the settings of the documented recipe of the same global batch.
D0_OURS = {"d0_coco_8xh100_amp": "d0_coco_8xa100_amp", "d0_coco_8xh200_amp": "d0_coco_32xv100_amp"}
# The TF2 reference: images per GPU, mixed precision; what follows for 8 GPUs: rate, steps per
# epoch, of warm-up, until the first and the second drop, in all.
TF2 = {
    "tf2_coco_8xa100_amp": (4, True, 0.04, 3696, 1108, 29571, 36964, 44352),
    "tf2_coco_8xa100_tf32": (4, False, 0.04, 3696, 1108, 29571, 36964, 44352),
    "tf2_coco_8xv100_amp": (4, True, 0.04, 3696, 1108, 29571, 36964, 44352),
    "tf2_coco_8xv100_fp32": (2, False, 0.02, 7392, 2217, 59143, 73929, 88704),
}
# The PyTorch reference's files: images of all GPUs, rate, drops, end, warm-up (iterations), its
# first factor, proposals kept for a rank's images.
PYTORCH = {
    "e2e_mask_rcnn_R_50_FPN_1x": (96, 0.12, (12000, 16000), 16667, 800, 1e-4, 12000),
    "e2e_mask_rcnn_R_50_FPN_1x_2019": (32, 0.04, (36000, 48000), 50000, 500, 1 / 3, 4000),
}
# Ours: ranks, images per rank, mixed precision.
MASK_OURS = {
    "coco_8xh100_amp": (8, 12, True),
    "coco_8xh200_amp": (8, 16, True),
    "coco_32xv100_amp": (32, 3, True),
    "coco_32xv100_fp32": (32, 3, False),
}
RANKS = {
    **{name: row[0] for name, row in {**D0, **MASK_OURS}.items()},
    **dict.fromkeys((*D0_OURS, *TF2, *PYTORCH), 8),
}
# Of those that are ours in form; the PyTorch reference's files are read by `read_run`.
PRESETS = {
    **dict.fromkeys((*D0, *D0_OURS), "nvidia"),
    **dict.fromkeys(TF2, "nvidia_tf2"),
    **dict.fromkeys(MASK_OURS, ""),
}


def model_of(name):
    return "efficientdet-d0" if name.startswith("d0_") else "maskrcnn-r50-fpn"


def file_of(name):
    return CONFIGS[families.package_of(model_of(name))] / f"{name}.yaml"


def load(name, preset_name=None):
    model = model_of(name)
    preset_name = PRESETS[name] if preset_name is None else preset_name
    config = families.with_preset(families.base_config(model), preset_name)
    return override(config, read_yaml(file_of(name)), source=name)


def plan_of(name, *, ranks=None, config=None, **train):
    config = override(config or load(name), train, source="test")
    num_examples = COCO_IMAGES[families.package_of(model_of(name))]
    return make_plan(
        config.train, config.optim, num_examples=num_examples, num_ranks=ranks or RANKS[name]
    )


def test_there_are_these_recipes_and_no_others():
    files = own_files("efficientdet/configs/*.yaml")
    for pattern in ("tf2_*", "coco_*"):
        files = [*files, *own_files(f"maskrcnn/configs/{pattern}.yaml")]
    assert {path.stem for path in files} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_can_work(name):
    family = families.load(model_of(name))
    for preset_name in (PRESETS[name] or "nvidia_tf2", ""):
        config = load(name, preset_name)
        family.validate(config)
        check_settings(config.train, config.data, config.eval)


@pytest.mark.parametrize("name", PRESETS)
def test_the_head_says_how_to_start_it_and_what_to_expect(name):
    text = file_of(name).read_text()
    head = text.split("\noptim:")[0]
    assert all(line.startswith("# ") for line in head.splitlines())
    folder, start = ("D0", "") if name in (*D0, *D0_OURS) else ("maskrcnn", "maskrcnn-")
    assert (
        f"bash scripts/{folder}/convergence-" in head
        or f"sbatch -N 4 slurm/{start}convergence-" in head
    )
    assert ("# What the reference reports: docs/runs.md." in head) == (name in D0)
    assert ("# What the TF2 reference reports: docs/runs.md." in head) == (name in TF2)
    if name in (*D0_OURS, *MASK_OURS):
        assert "Ours, not from the references" in text and "eference reports" not in text


# ---------------------------------------------------------------------------- EfficientDet


@pytest.mark.parametrize("name", D0)
def test_hyperparameters_are_the_documented_ones(name):
    config, (ranks, *expected) = load(name), D0[name]
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


@pytest.mark.parametrize("name", D0_DERIVED)
def test_schedule_is_the_documented_one(name):
    batch, per_epoch, warm_up, total, stop, rate_200, rate_300 = D0_DERIVED[name]
    plan, optim = plan_of(name), load(name).optim
    assert plan.global_batch_size == batch
    assert (plan.steps_per_epoch, plan.warmup_steps, plan.total_steps) == (
        per_epoch,
        warm_up,
        total,
    )
    assert plan.stop_epoch == 300 and plan.stop_epoch * per_epoch == stop
    assert plan.learning_rate == pytest.approx(D0[name][4], rel=1e-12)

    def rate(step):
        lengths = {"total_steps": tf.constant(total), "warmup_steps": tf.constant(warm_up)}
        return schedules.learning_rate_at(tf.constant(step), optim, plan, **lengths).numpy()

    assert [rate(0), rate(warm_up)] == pytest.approx([1e-4, D0[name][4]])
    last = [rate(epochs * per_epoch - 1) for epochs in (200, 300)]
    assert last == pytest.approx([rate_200, rate_300], abs=5e-4)


@pytest.mark.parametrize("name", D0_OURS)
def test_ours_follow_the_documented_recipe_of_equal_batch(name):
    assert plan_of(name) == plan_of(D0_OURS[name])
    assert load(name).optim == load(D0_OURS[name]).optim


def test_fewer_ranks_lower_the_rate():
    assert plan_of("d0_coco_8xa100_amp", ranks=4).learning_rate == pytest.approx(1.1)
    small = plan_of("d0_coco_8xa100_amp", ranks=2, batch_size=4)
    assert small.learning_rate == pytest.approx(2.2 * 8 / 1600)


# ---------------------------------------------------------------------------- Mask R-CNN


@pytest.mark.parametrize("name", TF2)
def test_tf2_hyperparameters_are_the_documented_ones(name):
    batch, amp, rate, per_epoch, warm_up, first, second, total = TF2[name]
    config = load(name)
    train, optim, plan = config.train, config.optim, plan_of(name, config=config)
    assert (train.batch_size, train.num_epochs, config.runtime.amp) == (batch, 12, amp)
    assert config.eval.eval_batch_size == 8
    assert (optim.momentum, optim.weight_decay, optim.clip_gradients_norm) == (0.9, 1e-4, 0.0)
    assert (optim.optimizer, optim.lr_decay_method) == ("sgd", "stepwise")
    assert (optim.lr_step_factor, optim.lr_warmup_init) == (0.1, 0.0)
    assert (optim.moving_average_decay or 0) == 0 and config.solver.bias_lr_factor == 1.0
    assert plan.global_batch_size == 8 * batch
    assert plan.learning_rate == pytest.approx(rate, rel=1e-12)
    # The reference drops the last, partial batch of an epoch; here it is a step.
    assert plan.steps_per_epoch == per_epoch + 1
    assert plan.warmup_steps == pytest.approx(warm_up, abs=1)
    drops = [epoch * plan.steps_per_epoch for epoch in optim.lr_step_epochs]
    assert drops == pytest.approx([first, second], abs=12)
    assert plan.total_steps == total + 12 and plan.stop_epoch == 12


def test_tf2_evaluates_once_at_the_end():
    for name in TF2:
        config = load(name)
        epochs = [e for e in range(1, 13) if evaluates_after(e, config.train, config.eval)]
        assert epochs == [12]


@pytest.mark.parametrize(
    ("ranks", "batch", "rate"), [(1, 4, 0.005), (1, 2, 0.0025), (8, 2, 0.02), (8, 4, 0.04)]
)
def test_the_rate_follows_the_global_batch(ranks, batch, rate):
    for name in TF2:
        plan = plan_of(name, ranks=ranks, batch_size=batch)
        assert plan.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize("name", PYTORCH)
def test_pytorch_hyperparameters_are_the_documented_ones(name):
    images, rate, drops, total, warm_up, factor, proposals = PYTORCH[name]
    run = read_run(file_of(name), num_ranks=8)
    config = families.with_preset(families.base_config(run.model_name), "nvidia_pytorch")
    config = override(config, run.overrides, source=name)
    optim, plan = config.optim, plan_of(name, config=config)
    assert run.model_name == "maskrcnn-r50-fpn"
    assert plan.global_batch_size == images and config.eval.eval_batch_size == 1
    assert plan.learning_rate == pytest.approx(rate)
    assert plan.total_steps == pytest.approx(total, abs=config.train.num_epochs)
    assert plan.warmup_steps == pytest.approx(warm_up, abs=1)
    found = [round(epoch * plan.steps_per_epoch) for epoch in optim.lr_step_epochs]
    assert found == list(drops)
    assert optim.lr_warmup_init == pytest.approx(rate * factor)
    assert (optim.weight_decay, optim.momentum) == (1e-4, 0.9)
    assert config.rpn.train_rpn_post_nms_topn == proposals // (images // 8) == 1000
    assert config.model.image_size == (800, 1333)


@pytest.mark.parametrize("name", MASK_OURS)
def test_ours_follow_the_references(name):
    ranks, batch, amp = MASK_OURS[name]
    config = load(name)
    plan = plan_of(name)
    assert (config.train.batch_size, config.runtime.amp) == (batch, amp)
    assert plan.learning_rate == pytest.approx(0.00125 * ranks * batch)
    images, _, drops, total, warm_up, *_ = PYTORCH["e2e_mask_rcnn_R_50_FPN_1x"]
    epoch = COCO_IMAGES["maskrcnn"] / images
    assert config.optim.lr_warmup_epoch == pytest.approx(warm_up / epoch, abs=0.01)
    documented = [step / epoch for step in (*drops, total)]
    assert [*config.optim.lr_step_epochs, config.train.num_epochs] == pytest.approx(
        documented, abs=0.5
    )
