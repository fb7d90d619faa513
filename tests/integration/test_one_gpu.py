"""A machine with one GPU: both families train, score, draw and export there at default settings.

    ./run_tests.sh -m gpu

Networks are small, so that the compiler is what takes the time: under five minutes in all. With
RINGDET_GPU_TESTS_ON=cpu the same commands run without a GPU, to rehearse them; nothing is then
compiled, and precision is single.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from left_by_runs import differing, recorded
from test_maskrcnn import TINY as TINY_MASK
from tiny_runs import BACKBONE, TINY_MODEL, TINY_RUN

pytestmark = pytest.mark.gpu

REHEARSED = os.environ.get("RINGDET_GPU_TESTS_ON") == "cpu"
# What the shared flags turn off for CPUs stays on here.
FOR_CPUS = {"--noamp", "--nouse_xla"}
HIDE_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}
# Single precision, not TensorFloat-32.
FULL_PRECISION = {"NVIDIA_TF32_OVERRIDE": "0"}


def on_gpu(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Returns flags without those that are for CPUs."""
    return flags if REHEARSED else tuple(flag for flag in flags if flag not in FOR_CPUS)


FAMILIES = {
    "efficientdet": (*on_gpu(TINY_MODEL), *TINY_RUN, BACKBONE, "--num_epochs=16"),
    "maskrcnn": (*on_gpu(TINY_MASK), "--optimizer=adamw", "--lr=0.003", "--num_epochs=30"),
}


@pytest.fixture(scope="module")
def data(tiny_set):
    """Flags of 14 pictures with masks, which are validated on as well; and their folder."""
    if not REHEARSED and not tf.config.list_physical_devices("GPU"):
        pytest.fail("TensorFlow sees no GPU: -m gpu is for a machine with one")
    return tiny_set.flags, tiny_set.images


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, commands, data, tmp_path_factory):
    """A run at default settings: its family, folder and what it said."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    flags = (*FAMILIES[request.param], *data[0], f"--model_dir={folder}")
    result = commands.run("train.py", *flags).require_success()
    return request.param, folder, result.output


def losses(folder: Path) -> np.ndarray:
    """Returns the loss of each step."""
    return np.array([step["loss"] for step in recorded(folder)])


def test_training_at_default_settings_learns(trained):
    family, folder, said = trained
    if not REHEARSED:
        assert "precision mixed_float16, XLA on" in said and "rank(s), cpu" not in said
    found = losses(folder)
    assert np.isfinite(found).all()
    assert found[-7:].mean() < 0.8 * found[:7].mean()
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    print(f"{family}: loss {found[:7].mean():.3f} -> {found[-7:].mean():.3f}, AP {metrics['AP']}")
    assert metrics["AP50"] > 0.02  # of pictures that it has seen


def test_evaluation_drawing_and_export_from_the_same_checkpoint(trained, commands, data, tmp_path):
    family, folder, _ = trained
    (_, *validation), images = data
    evaluated = tmp_path / "evaluation"
    arguments = (f"--ckpt_path={folder}", *validation, f"--output_dir={evaluated}")
    commands.run("eval.py", *arguments).require_success()
    assert "AP" in json.loads((evaluated / "metrics.json").read_text())
    drawn = tmp_path / "drawn"
    arguments = (f"--model_dir={folder}", f"--image_path={images}", f"--output_dir={drawn}")
    commands.run("infer.py", *arguments).require_success()
    assert len(list(drawn.rglob("*.jpg")) + list(drawn.rglob("*.png"))) >= 14
    exported = tmp_path / "exported"
    arguments = (f"--model_dir={folder}", f"--saved_model_dir={exported}")
    commands.run("export.py", *arguments).require_success()
    model = tf.saved_model.load(str(exported))
    boxes, scores, *_ = model(tf.zeros([1, 80, 70, 3], tf.uint8))
    assert boxes.shape[-1] == 4 and np.isfinite(scores.numpy()).all(), family


@pytest.mark.parametrize(
    "flags",
    [
        ("--noamp",),
        ("--precision=mixed_bfloat16",),
        ("--nouse_xla",),
        ("--gradient_accumulation=2", "--sync_bn", "--remat"),
        ("--deterministic",),
    ],
    ids="-".join,
)
def test_every_way_to_train_takes_steps(flags, commands, data, tmp_path):
    few = ("--benchmark", "--benchmark_steps=4", f"--model_dir={tmp_path}")
    given = (*FAMILIES["efficientdet"], *data[0], *few, *flags)
    commands.run("train.py", *given).require_success()
    assert np.isfinite(losses(tmp_path)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_a_cpu(family, commands, data, tmp_path):
    few = ("--benchmark", "--benchmark_steps=3", "--noamp", "--nouse_xla")
    found = {}
    for device, environment in (("gpu", FULL_PRECISION), ("cpu", HIDE_GPU)):
        folder = tmp_path / device
        flags = (*FAMILIES[family], *data[0], *few, f"--model_dir={folder}")
        commands.run("train.py", *flags, environment=environment).require_success()
        found[device] = losses(folder)
    print(f"{family}: gpu {found['gpu']}, cpu {found['cpu']}")
    np.testing.assert_allclose(found["gpu"], found["cpu"], rtol=1e-3)


def test_a_stopped_run_goes_on_as_the_unbroken_one(commands, data, tmp_path):
    flags = (*FAMILIES["efficientdet"], *data[0], "--deterministic", "--skip_test")
    flags += ("--num_epochs=8", "--console_seconds=0")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    commands.run("train.py", *flags, f"--model_dir={unbroken}").require_success()
    running = commands.start("train.py", *flags, f"--model_dir={broken}")
    running.wait_until_said(" step 20/")
    running.send(signal.SIGTERM)
    assert running.wait().code == 75
    commands.run("train.py", *flags, f"--model_dir={broken}").require_success()
    assert differing(unbroken / "ckpt-final", broken / "ckpt-final") == []


def test_profiles_name_what_the_gpu_did(commands, data, tmp_path):
    flags = (*FAMILIES["efficientdet"], *data[0], "--profile_steps=3", f"--model_dir={tmp_path}")
    steps = ("--stop_epoch=2", "--skip_test")
    commands.run("train.py", *flags, *steps).require_success()
    assert list(tmp_path.rglob("*.xplane.pb"))
