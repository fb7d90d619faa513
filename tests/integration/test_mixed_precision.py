"""A step in other precisions, and compiled by XLA: close to the plain float32 step.

From trained weights with batch norm in inference mode: in training mode the coarsest level's
statistics come from two values a channel here, which turns rounding into differences of any size.
"""

import pytest
from left_by_runs import recorded
from tiny_runs import TINY_MODEL

LOSSES = ("cls_loss", "box_loss", "det_loss", "loss")


@pytest.fixture(scope="module")
def one_step(commands, trained_run, tmp_path_factory):
    """Makes one training step from the trained weights with some flags; returns its record."""
    model, hparams, *rest = TINY_MODEL

    def run(*flags, environment=None):
        folder = tmp_path_factory.mktemp("step")
        commands.run(
            "train.py",
            *trained_run.flags,
            *(model, f"{hparams},is_training_bn=false", *rest),
            f"--model_dir={folder}",
            f"--pretrained_ckpt={trained_run.folder}/ema_weights/emackpt-12",
            "--benchmark",
            "--benchmark_steps=1",
            *flags,
            environment=environment,
        ).require_success()
        (step,) = recorded(folder)
        return step

    return run


@pytest.fixture(scope="module")
def plain(one_step):
    """The float32 step."""
    return one_step()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance", "loss_scale"),
    [
        pytest.param("mixed_float16", 0.01, 32768.0, marks=pytest.mark.both_stacks),
        pytest.param("mixed_bfloat16", 0.05, 1.0, marks=pytest.mark.nightly),
    ],
)
def test_half_precision_is_close_to_float32(one_step, plain, precision, tolerance, loss_scale):
    half = one_step(f"--precision={precision}")
    assert half["skipped"] == 0
    assert half["loss_scale"] == loss_scale
    for name in LOSSES:
        assert half[name] == pytest.approx(plain[name], rel=tolerance), name
        assert half[name] != plain[name], "nothing was computed in half precision"
    assert half["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=5 * tolerance)


@pytest.mark.slow
def test_compiled_step_is_the_plain_one(one_step, plain):
    compiled = one_step(
        "--use_xla", environment={"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    )
    for name in LOSSES:
        assert compiled[name] == pytest.approx(plain[name], rel=1e-5), name
    assert compiled["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-3)
