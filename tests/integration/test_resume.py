"""A run that is stopped and started again ends as the unbroken one; starting from weights does not.

One chain of processes serves several tests: the run of `trained_run` once more, stopped by a signal
in the middle of epoch 6, and continued to its end.
"""

import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from left_by_runs import differing, recorded, tensors, time_log
from tiny_runs import TINY_MODEL

BOUNDARY_STEP, SIGNAL_STEP, LAST_STEP = 28, 38, 84


def steps_logged(folder):
    """Returns the step records of metrics.jsonl without what the clock says."""
    timed = ("time", "images_per_second", "data_wait_share")
    return [{k: v for k, v in step.items() if k not in timed} for step in recorded(folder)]


@pytest.fixture(scope="module")
def broken_run(commands, trained_run):
    """The chain: folder, the two results, and the checkpoint that the signal left."""
    folder = trained_run.folder.parent / "broken"
    flags = (*trained_run.flags, f"--model_dir={folder}")
    running = commands.start("train.py", *flags, "--console_seconds=0")
    running.wait_until_said(f" step {SIGNAL_STEP}/")
    running.send(signal.SIGTERM)
    first = running.wait()
    left = sorted(folder.glob("ckpt-000*.index"))[-1].stem
    return SimpleNamespace(
        folder=folder, first=first, second=commands.run("train.py", *flags), left=left
    )


def test_same_seed_gives_the_same_run_twice(trained_run, broken_run):
    for name in (f"ckpt-{BOUNDARY_STEP:08d}", "ema_weights/emackpt-04"):
        assert differing(broken_run.folder / name, trained_run.folder / name) == []


def test_signal_saves_and_asks_to_be_started_again(broken_run):
    assert broken_run.first.code == 75, broken_run.first.everything()
    assert "the same command continues here" in broken_run.first.output
    step = int(broken_run.left.removeprefix("ckpt-"))
    assert SIGNAL_STEP <= step < LAST_STEP
    assert step % 7, "the signal was to come in the middle of an epoch"
    assert f"stopped at step {step}" in broken_run.first.output
    assert f"continuing at step {step}, epoch {step // 7 + 1}" in broken_run.second.output


def test_continuing_says_from_what(broken_run):
    whole = f"restoring {broken_run.folder / broken_run.left}, which is whole"
    assert f"{whole}; initial weights are not read" in broken_run.second.output
    assert "backbone" not in broken_run.second.output


@pytest.mark.both_stacks
def test_resumed_run_ends_as_the_unbroken_one(trained_run, broken_run):
    broken_run.second.require_success()
    for name in ("ckpt-00000056", "ckpt-00000084", "ckpt-final", "ema_weights/emackpt-12"):
        assert differing(broken_run.folder / name, trained_run.folder / name) == []
    assert steps_logged(broken_run.folder) == steps_logged(trained_run.folder)


@pytest.mark.nightly  # every day a run is continued in the middle of an epoch
def test_run_continued_between_epochs_ends_as_the_unbroken_one(commands, trained_run, tmp_path):
    flags = (*trained_run.flags, f"--model_dir={tmp_path}/run")
    commands.run("train.py", *flags, "--stop_epoch=4").require_success()
    result = commands.run("train.py", *flags).require_success()
    assert f"continuing at step {BOUNDARY_STEP}, epoch 5" in result.output
    for name in ("ckpt-00000084", "ckpt-final", "ema_weights/emackpt-12"):
        assert differing(tmp_path / "run" / name, trained_run.folder / name) == []
    assert steps_logged(tmp_path / "run") == steps_logged(trained_run.folder)


def test_resumed_run_has_the_scores_of_the_unbroken_one(trained_run, broken_run):
    for name in ("metrics.json", "detections.json"):
        ours = (broken_run.folder / "evaluation" / name).read_text()
        assert ours == (trained_run.folder / "evaluation" / name).read_text()
    stored = [
        json.loads((folder / "ema_weights" / "emackpt-best.json").read_text())
        for folder in (broken_run.folder, trained_run.folder)
    ]
    assert stored[0]["best"] == stored[1]["best"]
    assert stored[0]["epoch"] == stored[1]["epoch"]


def test_history_is_kept_by_a_resumed_run(broken_run):
    records = time_log(broken_run.folder)
    steps = [r["data"]["steps"][1] for r in records if r.get("step") == "PARAMETER"]
    assert steps == list(range(1, LAST_STEP + 1))
    assert len((broken_run.folder / "commands.txt").read_text().splitlines()) == 2


# ---------------------------------------------------------------------------- starting from weights


def test_pretrained_weights_start_a_new_run_at_step_0(commands, tiny_set, trained_run, tmp_path):
    flags = (
        *TINY_MODEL,
        *tiny_set.flags,
        "--batch_size=2",
        "--num_epochs=1",
        "--num_examples_per_epoch=2",
        "--skip_test",
        "--lr=0",
        "--warmup_value=0",
        "--seed=5",
        f"--pretrained_ckpt={trained_run.folder}/ema_weights/emackpt-12",
        f"--model_dir={tmp_path / 'run'}",
    )
    result = commands.run("train.py", *flags).require_success()
    assert "weights from" in result.output
    assert "kept as initialised" not in result.output
    assert "continuing" not in result.output
    ours = tensors(tmp_path / "run" / "ckpt-final")
    assert ours["state/step"] == 1
    theirs = tensors(trained_run.folder / "ema_weights" / "emackpt-12")
    # At a rate of 0 only batch-norm statistics move.
    kept = [name for name in theirs if "moving_" not in name]
    assert len(kept) > 200
    for name in kept:
        np.testing.assert_array_equal(ours[name], theirs[name])
