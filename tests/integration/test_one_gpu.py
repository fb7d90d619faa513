"""A machine with one GPU: both families train, score, draw and export there at default settings.

    ./run_tests.sh -m gpu

Networks are small, so that the compiler is what takes the time; the commands of all tests that are
selected run side by side, half as many at once as there are cores. With RINGDET_GPU_TESTS_ON=cpu
the same commands run without a GPU, to rehearse them; nothing is then compiled, and precision is
single.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from commands import Commands, Result
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
    "maskrcnn": (*on_gpu(TINY_MASK), "--optimizer=adamw", "--lr=0.003", "--num_epochs=60"),
}


WAYS = (
    ("--noamp",),
    ("--precision=mixed_bfloat16",),
    ("--nouse_xla",),
    ("--gradient_accumulation=2", "--sync_bn", "--remat"),
    ("--deterministic",),
)
DEVICES = {"gpu": FULL_PRECISION, "cpu": HIDE_GPU}


class Runs:
    """Trainings in threads, each in a folder named after what it is for.

    Args:
      commands: starts them.
      data: flags of 14 pictures with masks, which are validated on as well.
      folder: of their folders.
    """

    def __init__(self, commands: Commands, data: tuple[str, ...], folder: Path):
        self._commands, self._data, self._folder = commands, data, folder
        self._pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2))
        self._futures: dict[str, Future] = {}

    def begin(self, name: str, family: str, *flags: str, **options) -> None:
        """Trains in a thread."""
        self._futures[name] = self._pool.submit(self.train, name, family, *flags, **options)

    def train(self, name: str, family: str, *flags: str, **options) -> Result:
        """Trains."""
        return self._commands.run("train.py", *self._flags(name, family, *flags), **options)

    def begin_broken(self, name: str, family: str, *flags: str) -> None:
        """Trains in a thread, is stopped after step 20 and goes on."""

        def broken() -> Result:
            running = self._commands.start("train.py", *self._flags(name, family, *flags))
            running.wait_until_said(" step 20/")
            running.send(signal.SIGTERM)
            assert running.wait().code == 75
            return self.train(name, family, *flags)

        self._futures[name] = self._pool.submit(broken)

    def ended(self, name: str) -> tuple[Path, Result]:
        """Waits; returns the folder of a training that succeeded, and what it said."""
        return self._folder / name, self._futures[name].result().require_success()

    def side_by_side(self, *calls: tuple[str, ...]) -> None:
        """Runs commands, each a script and its flags, at once; fails unless all succeed."""
        futures = [self._pool.submit(self._commands.run, *call) for call in calls]
        for future in futures:
            future.result().require_success()

    def close(self) -> None:
        """Begins nothing more and waits for what runs."""
        self._pool.shutdown(cancel_futures=True)

    def _flags(self, name: str, family: str, *flags: str) -> tuple[str, ...]:
        return (*FAMILIES[family], *self._data, f"--model_dir={self._folder / name}", *flags)


@pytest.fixture(scope="module")
def runs(request, commands, tiny_set, tmp_path_factory) -> Iterator[Runs]:
    """The trainings of the tests that are selected, begun together."""
    if not REHEARSED and not tf.config.list_physical_devices("GPU"):
        pytest.fail("TensorFlow sees no GPU: -m gpu is for a machine with one")
    runs = Runs(commands, tiny_set.flags, tmp_path_factory.mktemp("gpu"))
    begin_all(runs, {item.originalname for item in request.session.items})
    yield runs
    runs.close()


def begin_all(runs: Runs, tests: set[str]) -> None:
    """Begins what the tests named wait for."""
    few = ("--benchmark", "--benchmark_steps=4")
    if tests & {
        "test_training_at_default_settings_learns",
        "test_evaluation_drawing_and_export_from_the_same_checkpoint",
    }:
        for family in FAMILIES:
            runs.begin(family, family)
    if "test_a_stopped_run_goes_on_as_the_unbroken_one" in tests:
        exact = ("--deterministic", "--skip_test", "--num_epochs=8", "--console_seconds=0")
        runs.begin_broken("broken", "efficientdet", *exact)
        runs.begin("unbroken", "efficientdet", *exact)
    if "test_losses_are_those_of_a_cpu" in tests:
        for family in FAMILIES:
            for device, environment in DEVICES.items():
                plain = (*few, "--noamp", "--nouse_xla")
                runs.begin(f"{family}-{device}", family, *plain, environment=environment)
    if "test_every_way_to_train_takes_steps" in tests:
        for flags in WAYS:
            runs.begin("".join(flags), "efficientdet", *few, *flags)
    if "test_profiles_name_what_the_gpu_did" in tests:
        profiled = ("--profile_steps=3", "--stop_epoch=2", "--skip_test")
        runs.begin("profiled", "efficientdet", *profiled)


def losses(folder: Path) -> np.ndarray:
    """Returns the loss of each step."""
    return np.array([step["loss"] for step in recorded(folder)])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_at_default_settings_learns(family, runs):
    folder, result = runs.ended(family)
    if not REHEARSED:
        said = result.output
        assert "precision mixed_float16, XLA on" in said and "rank(s), cpu" not in said
    found = losses(folder)
    assert np.isfinite(found).all()
    assert found[-7:].mean() < 0.8 * found[:7].mean()
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    print(f"{family}: loss {found[:7].mean():.3f} -> {found[-7:].mean():.3f}, AP {metrics['AP']}")
    assert metrics["AP50"] > 0.02  # of pictures that it has seen


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_drawing_and_export_from_the_same_checkpoint(family, runs, tiny_set, tmp_path):
    folder, _ = runs.ended(family)
    _, *validation = tiny_set.flags
    evaluated, drawn, exported = (tmp_path / name for name in ("evaluation", "drawn", "exported"))
    pictures = f"--image_path={tiny_set.images}"
    runs.side_by_side(
        ("eval.py", f"--ckpt_path={folder}", *validation, f"--output_dir={evaluated}"),
        ("infer.py", f"--model_dir={folder}", pictures, f"--output_dir={drawn}"),
        ("export.py", f"--model_dir={folder}", f"--saved_model_dir={exported}"),
    )
    assert "AP" in json.loads((evaluated / "metrics.json").read_text())
    assert len(list(drawn.rglob("*.jpg")) + list(drawn.rglob("*.png"))) >= 14
    model = tf.saved_model.load(str(exported))
    boxes, scores, *_ = model(tf.zeros([1, 80, 70, 3], tf.uint8))
    assert boxes.shape[-1] == 4 and np.isfinite(scores.numpy()).all(), family


@pytest.mark.parametrize("flags", WAYS, ids="".join)
def test_every_way_to_train_takes_steps(flags, runs):
    folder, _ = runs.ended("".join(flags))
    assert np.isfinite(losses(folder)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_a_cpu(family, runs):
    found = {device: losses(runs.ended(f"{family}-{device}")[0]) for device in DEVICES}
    print(f"{family}: gpu {found['gpu']}, cpu {found['cpu']}")
    np.testing.assert_allclose(found["gpu"], found["cpu"], rtol=1e-3)


def test_a_stopped_run_goes_on_as_the_unbroken_one(runs):
    (unbroken, _), (broken, _) = runs.ended("unbroken"), runs.ended("broken")
    assert differing(unbroken / "ckpt-final", broken / "ckpt-final") == []


def test_profiles_name_what_the_gpu_did(runs):
    folder, _ = runs.ended("profiled")
    assert list(folder.rglob("*.xplane.pb"))
