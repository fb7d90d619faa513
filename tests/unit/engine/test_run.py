"""Assembling a run for a tiny family: preflight, initial weights, resume, evaluation."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from engine_tiny_family import Config, TinyFamily, config_of
from left_by_runs import differing, recorded, tensors

from engine.config.fields import ConfigError
from engine.files import checkpoint
from engine.files.description import read_metadata
from engine.log.hooks import RunStart, make_hooks
from engine.log.run_log import RunLog
from engine.ranks import distributed, machine
from engine.run import run_training
from engine.run_evaluation import evaluate_checkpoint
from engine.start import run_lock, start_checks

MORE_RANKS = {"num_ranks": 2, "global_batch_size": 8}


@pytest.fixture(autouse=True)
def policy():
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "trained"
    assert run_training(config_of(folder), TinyFamily()) == 0
    return folder


@pytest.fixture
def resumable(trained, tmp_path) -> Path:
    """A copy of the run, as it was after its first epoch."""
    folder = tmp_path / "resumable"
    shutil.copytree(trained, folder)
    for path in [*folder.glob("ckpt-00000012.*"), *folder.glob("ckpt-final.*")]:
        path.unlink()
    return folder


def test_what_a_run_writes_about_itself(trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["optim"]["learning_rate"] == 0.05 and config["train"]["seed"] == 3
    assert "packages" in json.loads((trained / "environment.json").read_text())
    assert (trained / "commands.txt").read_text().count("\n") == 1
    stored = read_metadata(trained / "ckpt-00000012")
    assert stored["config"] == config
    assert {k: stored[k] for k in ("step", "epoch", "seed", "num_ranks")} == {
        "step": 12,
        "epoch": 2,
        "seed": 3,
        "num_ranks": 1,
    }
    assert stored["task"] == {"data": {"fingerprint": "abc"}}
    assert (stored["global_batch_size"], stored["total_steps"]) == (4, 12)


def test_initial_weights_reach_weights_and_averages(tmp_path):
    family = TinyFamily()
    still = {"lr": 0.0, "lr_warmup_init": 0.0, "weight_decay": 0.0}
    run_training(config_of(tmp_path / "run", num_epochs=1, **still), family)
    assert family.initialised == 1
    saved = tensors(tmp_path / "run" / "ema_weights" / "emackpt-01")
    np.testing.assert_allclose(saved["model/out/bias"], [1.0, 2.0, 3.0], rtol=1e-6)


def test_a_resumed_run_equals_an_unbroken_one_and_reads_no_initial_weights(trained, resumable):
    family = TinyFamily()
    assert run_training(config_of(resumable), family) == 0
    assert family.initialised == 0
    for name in ("ckpt-final", "ema_weights/emackpt-02"):
        assert differing(resumable / name, trained / name) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.5}, "optim.learning_rate: 0.05 -> 0.5"),
        ({"width": 9}, "model.width: 7 -> 9"),
        ({"batch_size": 8}, "global_batch_size: 4 -> 8"),
        ({"num_epochs": 9}, "total_steps: 12 -> 54"),
        ({"seed": 4}, "seed: 3 -> 4"),
    ],
)
@pytest.mark.parametrize("is_finished", [False, True])
def test_another_run_is_not_continued(resumable, trained, tmp_path, change, words, is_finished):
    folder = shutil.copytree(trained, tmp_path / "finished") if is_finished else resumable
    with pytest.raises(ConfigError) as error:
        run_training(config_of(folder, **change), TinyFamily())
    message = str(error.value)
    assert words in message and "--allow_config_change" in message and str(folder) in message


def test_other_data_is_not_continued(resumable):
    family = TinyFamily()
    family.fingerprint = "xyz"
    with pytest.raises(ConfigError, match='data: {"fingerprint": "abc"} -> '):
        run_training(config_of(resumable), family)


def test_a_change_that_is_allowed_takes_effect(resumable):
    config = config_of(resumable, lr=0.5, num_epochs=4, allow_config_change=True)
    assert run_training(config, TinyFamily()) == 0
    stored = read_metadata(resumable / "ckpt-final")
    assert (stored["step"], stored["total_steps"]) == (24, 24)
    assert int(tensors(resumable / "ckpt-final")["state/total_steps"]) == 24
    assert max(step["learning_rate"] for step in recorded(resumable)) > 0.1


def test_settings_that_may_change_between_runs(resumable):
    config = config_of(resumable, keep_checkpoints=1, log_steps=2, console_seconds=1.0)
    assert run_training(config, TinyFamily()) == 0


@pytest.mark.parametrize("suffix", [".json", ".index"])
def test_a_damaged_checkpoint_is_named(resumable, suffix):
    path = resumable / f"ckpt-00000006{suffix}"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ConfigError, match=r"none of its checkpoints is whole: .*ckpt-00000006"):
        run_training(config_of(resumable), TinyFamily())


def test_the_checkpoint_before_a_damaged_one_is_continued(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "ckpt-00000012.json").write_text("{}")
    assert run_training(config_of(folder), TinyFamily()) == 0
    said = capsys.readouterr().out
    assert "WARNING" in said and "ckpt-00000012.json is missing" in said and "passed over" in said
    assert f"restoring {folder}/ckpt-00000006, which is whole" in said
    assert differing(folder / "ckpt-final", trained / "ckpt-final") == []


def test_a_finished_run_of_another_model_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(ConfigError, match="another configuration: model.name: 'tiny' -> 'other'"):
        run_training(config_of(folder, **{"model.name": "other"}), TinyFamily())


def test_a_finished_run_says_how_to_go_on(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.index")}
    (folder / "evaluation").mkdir()
    (folder / "evaluation/metrics.json").write_text("{}")
    family = TinyFamily()
    assert run_training(config_of(folder), family) == 0
    said = capsys.readouterr().out
    assert "a run that is finished: epoch 2, step 12, AP" in said and not family.tasks
    assert said.endswith(f"detections and metrics are in {folder / 'evaluation'}\n")
    for flag in ("--num_epochs", "--allow_config_change", "--stop_epoch", "--pretrained_ckpt="):
        assert flag in said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.index")} == before


def test_what_changed_since_the_checkpoint_is_said(resumable, monkeypatch, capsys):
    real = machine.report()
    later = {**real, "commit": "abc", "packages": {**real["packages"], "numpy": "9.9"}}
    later["gpus"] = ["Card 9, 550.1, 80 GiB"] * 2
    monkeypatch.setattr(machine, "report", lambda: later)
    run_training(config_of(resumable), TinyFamily())
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "since the checkpoint: " in line]
    assert "GPUs: " in line and line.count("-> Card 9") == line.count("Card 9") == 1
    assert f"commit: {real['commit']} -> abc" in line
    assert f"numpy: {real['packages']['numpy']} -> 9.9" in line and "ranks" not in line


def test_a_run_in_use_is_refused_and_left_alone(resumable):
    lock = run_lock.RunLock(resumable, stale_seconds=5.0, on_lost=pytest.fail)
    lock.acquire()
    before = sorted(resumable.iterdir())
    family = TinyFamily()
    try:
        with pytest.raises(ConfigError, match=f"is in use by another run .host .*{os.getpid()}"):
            run_training(config_of(resumable), family)
        assert sorted(resumable.iterdir()) == before and not family.tasks
    finally:
        lock.release()
    assert run_training(config_of(resumable), family) == 0
    assert not (resumable / run_lock.NAME).exists()


@pytest.mark.parametrize(
    ("stored", "ranks", "fitting"), [(8, 3, "1, 2, 4, 8"), (6, 4, "1, 2, 3, 6")]
)
def test_ranks_that_cannot_share_the_data_are_told_which_can(monkeypatch, stored, ranks, fitting):
    monkeypatch.setattr(distributed, "size", lambda: ranks)
    config = config_of("run", allow_rank_change=True)
    with pytest.raises(ConfigError, match=f"{ranks} rank.s. cannot share evenly: {fitting} ranks"):
        start_checks.shares_of(config, {"num_ranks": stored})
    assert start_checks.shares_of(config_of("run"), {"num_ranks": stored}) == ranks
    assert start_checks.shares_of(config, {"num_ranks": 2, "shares": 2 * ranks}) == 2 * ranks
    joined = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, sync_bn=True))
    with pytest.raises(ConfigError, match=f"not go with --sync_bn.*; use {2 * ranks} ranks"):
        start_checks.shares_of(joined, {"num_ranks": 2 * ranks})


def test_settings_for_all_ranks_mean_those_that_the_run_began_with(trained, monkeypatch):
    monkeypatch.setattr(distributed, "launched_size", lambda: 5)
    train = config_of(trained).train
    assert start_checks.ranks_meant(train) == 5
    allowing = dataclasses.replace(train, allow_rank_change=True)
    assert start_checks.ranks_meant(allowing) == 1
    assert start_checks.ranks_meant(dataclasses.replace(allowing, model_dir="nowhere")) == 5


def test_fewer_ranks_are_told_of_the_flag(resumable, monkeypatch):
    stored = read_metadata(resumable / "ckpt-00000006")
    monkeypatch.setattr("engine.run.read_description", lambda prefix: stored | MORE_RANKS)
    with pytest.raises(ConfigError, match="it ran on 2 rank.s., this is 1: --allow_rank_change"):
        run_training(config_of(resumable), TinyFamily())
    of_as_many = stored | {**MORE_RANKS, "num_ranks": 1}
    monkeypatch.setattr("engine.run.read_description", lambda prefix: of_as_many)
    with pytest.raises(ConfigError, match="with the new ones$"):
        run_training(config_of(resumable), TinyFamily())


def test_a_folder_that_vanishes_is_noticed_at_the_next_line(tmp_path):
    (tmp_path / "run").mkdir()
    log = RunLog(tmp_path / "run", tensorboard=False)
    log.info("all is well")
    log.numbers("step", {"loss": 1.0})
    shutil.rmtree(tmp_path / "run")
    for say in (lambda: log.info("more"), lambda: log.numbers("step", {"loss": 1.0})):
        with pytest.raises(FileNotFoundError, match="model_dir was deleted, moved or unmounted"):
            say()
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match="is gone"):
        log.info("into a new folder")


@pytest.mark.parametrize(
    ("name", "make", "what"),
    [
        ("train", Path.touch, "a file where a run keeps a folder"),
        ("run.lock", Path.mkdir, "a folder where a run keeps a file"),
        ("metrics.jsonl", os.mkfifo, "a pipe"),
    ],
)
def test_something_else_under_the_name_of_a_run_s_file(tmp_path, name, make, what):
    make(tmp_path / name)
    with pytest.raises(ConfigError, match=f"{name} is {what}"):
        run_training(config_of(tmp_path), TinyFamily())


class TestBeforeAnyStep:
    def error_of(self, config, family=None) -> str:
        family = family or TinyFamily()
        with pytest.raises((ConfigError, ValueError)) as error:
            run_training(config, family)
        assert family.initialised == 0
        return str(error.value)

    def test_missing_settings(self, tmp_path):
        names = ("model_dir", "training_file_pattern", "val_file_pattern", "val_json_file")
        without = "; --skip_test trains without a validation set"
        for name in names:
            config = config_of(tmp_path / "run", **{name: ""})
            also = without if name.startswith("val") else ""
            assert self.error_of(config) == f"--{name} is required{also}"
        message = self.error_of(config_of(tmp_path / "run", **dict.fromkeys(names, "")))
        folder = ", or --data=DIR, a folder with images and annotations (docs/data.md)"
        assert message == f"--{', --'.join(names)} are required{folder}{without}"

    def test_a_run_without_evaluation_needs_no_validation_set(self, tmp_path):
        settings = {"benchmark": True, "benchmark_steps": 2, "val_file_pattern": ""}
        config = config_of(tmp_path / "run", val_json_file="", **settings)
        assert run_training(config, TinyFamily()) == 0

    def test_settings_of_engine_and_family(self, tmp_path):
        config = config_of(tmp_path / "a", skip_test=True, target_ap=0.3)
        assert "--skip_test with target_ap=0.3" in self.error_of(config)
        assert "width=0" in self.error_of(config_of(tmp_path / "b", width=0))
        assert not (tmp_path / "a").exists()

    def test_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        message = self.error_of(config_of(tmp_path / "file" / "run"))
        assert "cannot be written" in message and "--model_dir" in message

    def test_too_little_space(self, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=2**29)
        monkeypatch.setattr(start_checks.shutil, "disk_usage", lambda path: usage)
        message = self.error_of(config_of(tmp_path / "run", min_free_gb=1.0))
        assert "0.50 GiB free, 1 are wanted (--min_free_gb)" in message

    def test_ground_truth_that_does_not_fit(self, tmp_path):
        family = TinyFamily()
        family.ground_truth_error = "ids do not meet"
        assert self.error_of(config_of(tmp_path / "run"), family) == "ids do not meet"


def test_ranks_that_differ_are_told_in_what(tmp_path, monkeypatch):
    config = config_of(tmp_path)

    def gather(value):
        _, mine = value
        older = {name: value for name, value in mine.items() if name != "train.hooks"}
        return [("node1", mine), ("node2", {**older, "code": "12ab", "train.seed": "9"})]

    monkeypatch.setattr(distributed, "all_gather_object", gather)
    with pytest.raises(distributed.AgreedError) as error:
        start_checks.check_ranks_agree(config)
    message = str(error.value)
    assert "rank 1 on node2 differs from rank 0" in message
    assert "code: 12ab and" in message and "train.seed: 9 and 3" in message
    assert "train.hooks: None and []" in message


def evaluate(config: Config, path: Path, output: Path, family: TinyFamily) -> dict:
    evaluate_checkpoint(
        lambda stored: (family, config),
        find_checkpoint=lambda: checkpoint.find(path),
        output_dir=str(output),
        sets=None,
    )
    return family.evaluations[-1]


def test_evaluation_of_the_saved_file_equals_that_in_training(trained, tmp_path):
    family = TinyFamily()
    found = evaluate(config_of(trained), trained, tmp_path / "out", family)
    best = max(recorded(trained, "evaluation"), key=lambda record: record["AP"])
    assert (found["AP"], found["epoch"]) == (best["AP"], best["epoch"])
    assert found["folder"] == tmp_path / "out" and family.checked == 1


def test_random_weights_are_never_evaluated(tmp_path):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        evaluate(config_of(tmp_path), tmp_path, tmp_path / "out", TinyFamily())


def test_mixed_precision_runs_and_resumes(tmp_path):
    config = config_of(tmp_path / "run", num_epochs=1, precision="mixed_float16")
    assert run_training(config, TinyFamily()) == 0
    saved = tensors(tmp_path / "run" / "ckpt-final")
    assert saved["state/loss_scale"] <= 32768.0
    assert saved["model/hidden/kernel"].dtype == np.float32
    assert run_training(config, TinyFamily()) == 0


HOOK = """
import json

from engine.log.hooks import Hook


class Note(Hook):
    def __init__(self, start):
        assert start.is_main and start.resumed == {} and start.config.train.num_epochs == 2
        self.path = start.folder / "noted.jsonl"

    def note(self, kind, value):
        with self.path.open("a") as file:
            file.write(json.dumps([kind, value._asdict()]) + "\\n")

    def after_step(self, end):
        self.note("step", end)

    def after_epoch(self, end):
        self.note("epoch", end)
        return end.epoch == 1

    def at_end(self, result):
        assert result.exit_code == 0 and result.epoch == 1
        self.path.with_suffix(".end").touch()


def no_hook(start):
    return 3
"""


class TestHooks:
    @pytest.fixture
    def file(self, tmp_path) -> Path:
        path = tmp_path / "notes.py"
        path.write_text(HOOK)
        return path

    def test_a_hook_is_told_steps_and_epochs_and_ends_the_run(self, file, tmp_path):
        folder = tmp_path / "run"
        assert run_training(config_of(folder, hooks=(f"{file}:Note",)), TinyFamily()) == 0
        noted = [json.loads(line) for line in (folder / "noted.jsonl").read_text().splitlines()]
        assert [kind for kind, _ in noted] == ["step"] * 6 + ["epoch"]
        steps, end = [value for _, value in noted[:6]], noted[6][1]
        assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
        losses = [step["loss"] for step in recorded(folder)]
        assert [step["numbers"]["loss"] for step in steps] == losses
        (scores,) = recorded(folder, "evaluation")
        assert (end["epoch"], end["step"], end["metrics"]["AP"]) == (1, 6, scores["AP"])
        assert (folder / "noted.end").exists() and (folder / "ckpt-final.index").exists()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("{file}:Absent", "no attribute 'Absent'"),
            ("{file}:no_hook", "expected to get an engine.log.hooks.Hook, got int"),
            ("absent_module:Hook", "absent_module"),
            ("Hook", "expected MODULE:NAME"),
        ],
    )
    def test_what_is_no_hook_is_refused(self, file, tmp_path, name, message):
        start = RunStart(None, tmp_path, True, {})
        with pytest.raises(ConfigError, match=message):
            make_hooks([name.format(file=file)], start)
