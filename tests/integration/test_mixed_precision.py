"""The first step in other precisions, and compiled by XLA: close to the float32 step."""

import json

import pytest
from commands import python

LOSSES = ("cls_loss", "box_loss", "det_loss", "loss", "gradient_norm")


def first_step(folder):
    """Returns the first step's record of a run's metrics.jsonl."""
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


@pytest.fixture
def one_step(trained_run, tmp_path):
    """Makes the first step of the trained run again with some flags changed; returns its record."""

    def run(*flags, environment=None):
        folder = tmp_path / "run"
        python(
            "train.py",
            *trained_run.flags,
            f"--model_dir={folder}",
            "--benchmark",
            "--benchmark_steps=1",
            *flags,
            environment=environment,
        ).require_success()
        record = first_step(folder)
        assert record["step"] == 1
        return record

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance", "loss_scale"),
    [("mixed_float16", 0.02, 32768.0), ("mixed_bfloat16", 0.1, 1.0)],
)
def test_half_precision_is_close_to_float32(
    one_step, trained_run, precision, tolerance, loss_scale
):
    half, full = one_step(f"--precision={precision}"), first_step(trained_run.folder)
    assert half["skipped"] == 0
    assert half["loss_scale"] == loss_scale
    for name in LOSSES:
        assert half[name] == pytest.approx(full[name], rel=tolerance), name
        assert half[name] != full[name], "nothing was computed in half precision"


@pytest.mark.slow
def test_compiled_step_is_the_plain_one(one_step, trained_run):
    compiled = one_step(
        "--use_xla", environment={"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    )
    plain = first_step(trained_run.folder)
    for name in LOSSES:
        assert compiled[name] == pytest.approx(plain[name], rel=1e-4), name
