"""Outside loggers get the numbers of a run; the packages are stood in for."""

import dataclasses
import json
import os
import posixpath
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.config.fields import ConfigError
from engine.config.settings import EvalConfig, TrainConfig
from engine.files.best import BestEvaluation, key_of
from engine.log.hooks import EpochEnd, RunResult, RunStart, StepEnd
from engine.log.outside_loggers import _plain, make_loggers


@dataclasses.dataclass(frozen=True)
class Config:
    train: TrainConfig = dataclasses.field(default_factory=lambda: TrainConfig(log_steps=2))


class Recorder:
    """Stands for a package: every call is kept."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **keywords):
            self.calls.append((name, args, keywords))
            return self

        return call

    def arguments_of(self, name):
        return [(args, keywords) for called, args, keywords in self.calls if called == name]


def drive(monkeypatch, package: str, folder: Path, config: Config = Config()) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, package, recorder)
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "report.html").write_text("<p>page</p>")
    (logger,) = make_loggers([package], RunStart(config, folder, True, {}))
    for step in (1, 2):
        logger.after_step(StepEnd(step, 1, {"loss": 1.5}))
    assert not logger.after_epoch(EpochEnd(2, 1, {"AP": 0.5, "AP_/a&b": 0.25}, {}))
    logger.at_end(RunResult(0, 1, 2, {}, {}))
    return recorder


def test_weights_and_biases_gets_numbers_settings_and_report(monkeypatch, tmp_path):
    calls = drive(monkeypatch, "wandb", tmp_path)
    ((_, begun),) = calls.arguments_of("init")
    assert begun["config"]["train"]["log_steps"] == 2 and begun["name"] == tmp_path.name
    numbers = calls.arguments_of("log")
    assert numbers[0] == (({"train/loss": 1.5},), {"step": 2})
    assert numbers[1][0][0] == {"epoch": 1, "eval/AP": 0.5, "eval/AP_/a&b": 0.25}
    assert calls.arguments_of("Html") == [(("<p>page</p>",), {})]
    assert calls.arguments_of("finish") == [((), {"exit_code": 0})]


def test_mlflow_gets_numbers_under_names_that_it_takes(monkeypatch, tmp_path):
    calls = drive(monkeypatch, "mlflow", tmp_path)
    first, second = calls.arguments_of("log_metrics")
    assert first == (({"train/loss": 1.5},), {"step": 2})
    assert second[0][0]["eval/AP_/a_b"] == 0.25
    ((report,), _) = calls.arguments_of("log_artifact")[0]
    assert report.endswith("report.html")
    assert calls.arguments_of("end_run") == [(("FINISHED",), {})]


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_folder_may_have_any_name(monkeypatch, tmp_path, package):
    folder = tmp_path / os.fsdecode(b"run-\xff")
    folder.mkdir()
    calls = drive(monkeypatch, package, folder, Config(TrainConfig(model_dir=str(folder))))
    texts = {
        "wandb": lambda: [
            calls.arguments_of("init")[0][1][key] for key in ("name", "id", "config")
        ],
        "mlflow": lambda: [calls.arguments_of(name) for name in ("start_run", "log_dict")],
    }
    json.dumps(texts[package](), ensure_ascii=False).encode()


def test_mlflow_gets_classes_in_any_script_and_no_paths_that_it_refuses():
    names = ["AP_/細胞", "AP_/組織", "AP_//a", "AP_/a/", "AP_/.", "AP_/" + "x" * 300]
    plain = [_plain(f"eval/{name}") for name in names]
    assert plain[:3] == ["eval/AP_/細胞", "eval/AP_/組織", "eval/AP_/a"]
    assert all(name == posixpath.normpath(name) and len(name) <= 250 for name in plain)


def test_only_rank_0_logs_and_what_is_missing_is_named(tmp_path):
    assert make_loggers(["wandb"], RunStart(Config(), tmp_path, False, {})) == []
    start = RunStart(Config(), tmp_path, True, {})
    with pytest.raises(ConfigError, match="wandb or mlflow; did you mean 'mlflow'"):
        make_loggers(["mlflo"], start)
    with pytest.raises(ConfigError, match="pip install mlflow"), pytest.MonkeyPatch.context() as m:
        m.setitem(sys.modules, "mlflow", None)
        make_loggers(["mlflow"], start)


def test_patience_counts_from_the_last_gain_that_is_large_enough():
    best = BestEvaluation(EvalConfig(patience=2, min_delta=0.1), {})
    found = [(best.update({"AP": value}), best.is_over) for value in (0.2, 0.25, 0.31, 0.3, 0.4)]
    # 0.25 is the best so far, but no gain of 0.1; 0.31 is one; 0.4 is again less than 0.41.
    assert found == [(True, False), (True, False), (True, False), (False, False), (True, True)]
    assert BestEvaluation(EvalConfig(patience=2), best.state()).is_over
    other = BestEvaluation(EvalConfig(best_metric="AP50"), best.state())
    assert other.value is None and SimpleNamespace(**other.state()).waited == 0


@pytest.mark.parametrize(
    ("before", "now", "is_anew"),
    [("a", "a", False), ("a", "b", True), ("a", "", False), ("", "b", False), (None, "b", False)],
)
def test_scores_by_other_annotations_are_not_compared(before, now, is_anew):
    """Resumed without an evaluation, or from a checkpoint that does not tell: they are the same."""
    first = BestEvaluation(EvalConfig(), {}, truth=before or "")
    first.update({"AP": 0.9})
    stored = first.state()
    if before is None:
        del stored["truth"]
    resumed = BestEvaluation(EvalConfig(), stored, truth=now)
    assert resumed.is_anew == is_anew
    assert resumed.update({"AP": 0.8}) == is_anew
    assert resumed.state()["truth"] == (now or before)


def test_a_class_or_a_number_by_name():
    metrics = {"AP": 0.1, "mask_AP": 0.1, "AP_/white cell": 0.2}
    assert key_of("white cell", metrics) == "AP_/white cell"
    assert key_of("mask AP", metrics) == "mask_AP"
    with pytest.raises(ConfigError, match="did you mean 'white cell'"):
        key_of("white cel", metrics)
