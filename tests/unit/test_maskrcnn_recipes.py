"""Recipes of Mask R-CNN hold the documented numbers, and every run of theirs gets its rate."""

from pathlib import Path

import pytest
from own_files import own_files

from engine.config.fields import override
from engine.config.recipe_yaml import read_yaml
from engine.optim.plan import check_settings, evaluates_after, make_plan
from maskrcnn.nvidia.pytorch_yaml import read_run
from maskrcnn.settings import base_config, preset
from maskrcnn.validation import validate

CONFIGS = Path(__file__).resolve().parents[2] / "maskrcnn" / "configs"
COCO_IMAGES = 118287

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
OURS = {
    "coco_8xh100_amp": (8, 12, True),
    "coco_8xh200_amp": (8, 16, True),
    "coco_32xv100_amp": (32, 3, True),
    "coco_32xv100_fp32": (32, 3, False),
}
PRESETS = {**dict.fromkeys(TF2, "nvidia_tf2"), **dict.fromkeys(OURS, "")}


def load(name, preset_name=None):
    preset_name = PRESETS[name] if preset_name is None else preset_name
    model = "maskrcnn-r50-fpn"
    config = override(base_config(model), preset(preset_name, model_name=model), source="preset")
    return override(config, read_yaml(CONFIGS / f"{name}.yaml"), source=name)


def plan_of(config, *, ranks=8, **train):
    config = override(config, train, source="test")
    return make_plan(config.train, config.optim, num_examples=COCO_IMAGES, num_ranks=ranks)


def test_there_are_these_recipes_and_no_others():
    assert {path.stem for path in own_files("maskrcnn/configs/tf2_*.yaml")} == set(TF2)
    assert {path.stem for path in own_files("maskrcnn/configs/coco_*.yaml")} == set(OURS)


@pytest.mark.parametrize("name", TF2)
def test_tf2_hyperparameters_are_the_documented_ones(name):
    batch, amp, rate, per_epoch, warm_up, first, second, total = TF2[name]
    config = load(name)
    train, optim, plan = config.train, config.optim, plan_of(config)
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
        plan = plan_of(load(name), ranks=ranks, batch_size=batch)
        assert plan.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize("name", PYTORCH)
def test_pytorch_hyperparameters_are_the_documented_ones(name):
    images, rate, drops, total, warm_up, factor, proposals = PYTORCH[name]
    path = CONFIGS / f"{name}.yaml"
    run = read_run(path, num_ranks=8)
    overrides = preset("nvidia_pytorch", model_name=run.model_name)
    config = override(run.base_config(), overrides, source="preset")
    config = override(config, run.overrides, source=name)
    optim, plan = config.optim, plan_of(config)
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


@pytest.mark.parametrize("name", OURS)
def test_ours_follow_the_references(name):
    ranks, batch, amp = OURS[name]
    config = load(name)
    plan = plan_of(config, ranks=ranks)
    assert (config.train.batch_size, config.runtime.amp) == (batch, amp)
    assert plan.learning_rate == pytest.approx(0.00125 * ranks * batch)
    images, _, drops, total, warm_up, *_ = PYTORCH["e2e_mask_rcnn_R_50_FPN_1x"]
    epoch = COCO_IMAGES / images
    assert config.optim.lr_warmup_epoch == pytest.approx(warm_up / epoch, abs=0.01)
    documented = [step / epoch for step in (*drops, total)]
    assert [*config.optim.lr_step_epochs, config.train.num_epochs] == pytest.approx(
        documented, abs=0.5
    )
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert "Ours, not from the references" in text and "reference reports" not in text


@pytest.mark.parametrize("name", PRESETS)
def test_settings_can_work(name):
    for preset_name in ("", "nvidia_tf2"):
        config = load(name, preset_name)
        validate(config)
        check_settings(config.train, config.optim, config.eval)


@pytest.mark.parametrize("name", PRESETS)
def test_the_head_says_how_to_start_it_and_what_to_expect(name):
    head = (CONFIGS / f"{name}.yaml").read_text().split("\noptim:")[0]
    assert all(line.startswith("# ") for line in head.splitlines())
    start = "sbatch -N 4 slurm/maskrcnn-convergence-"
    assert "bash scripts/maskrcnn/convergence-" in head or start in head
    assert ("The TF2 reference reports: AP 0.37" in head) == (name in TF2)
