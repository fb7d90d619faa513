"""Runs side by side: the best first, and only the settings that differ."""

import json

import pytest
import yaml

from detector.compare_runs import compare_runs
from engine.config.fields import ConfigError


@pytest.fixture
def run_of(tmp_path):
    """Returns a function that writes what a run leaves: its settings, its records."""

    def write(name, *records, model_dir="", best_metric="AP", **optim):
        folder = tmp_path / name
        folder.mkdir()
        own = model_dir or str(folder)
        settings = {
            "optim": {"momentum": 0.9, **optim},
            "train": {"model_dir": own},
            "eval": {"val_json_file": f"{own}-data/eval.json", "best_metric": best_metric},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
        return folder

    return write


def step(number, loss):
    return {"kind": "step", "step": number, "epoch": 1, "loss": loss}


def evaluation(epoch, ap, ap50=0.5, **of_classes):
    return {
        "kind": "evaluation",
        "epoch": epoch,
        "step": 10 * epoch,
        "AP": ap,
        "AP50": ap50,
        **of_classes,
    }


def test_the_best_run_comes_first_with_the_settings_that_differ(run_of):
    # Its second epoch was evaluated again after a kill, which cut the last line.
    slow = run_of(
        *("slow", step(10, 2.0), evaluation(1, 0.2), evaluation(2, 0.9), evaluation(2, 0.1)),
        *(step(20, 1.23456), '{"kind": "st'),
        lr=0.1,
    )
    fast = run_of("fast", step(9, 3.0), evaluation(1, 0.25, 0.75), {"kind": "end", "step": 9}, lr=1)
    new = run_of("new", lr=0.3)
    (slow.parent / "slow-data").mkdir()
    rows = [
        line.split()
        for line in compare_runs([slow, fast, new, slow.parent / "slow-data"]).splitlines()
    ]
    assert rows == [
        ["run", "AP", "epoch", "AP50", "last", "AP", "epoch", "loss", "step", "optim.lr"],
        [str(fast), "0.2500", "1", "0.7500", "0.2500", "1", "3", "9", "done", "1"],
        [str(slow), "0.2000", "1", "0.5000", "0.1000", "2", "1.235", "20", "not", "done", "0.1"],
        [str(new), *"-------", "not", "done", "0.3"],
    ]


def test_best_is_what_the_runs_call_best(run_of):
    folders = [
        run_of(name, evaluation(1, 0.5, **{"AP_/red cell": ap}), best_metric="red cell")
        for name, ap in (("a", 0.1), ("b", 0.3))
    ]
    assert [line.split()[0] for line in compare_runs(folders).splitlines()] == [
        *("run", str(folders[1]), str(folders[0]))
    ]
    other = run_of("c", evaluation(1, 0.6))
    assert compare_runs([*folders, other]).splitlines()[1].split()[:2] == [str(other), "0.6000"]


def test_of_many_differences_some_are_shown(run_of):
    folders = [run_of(name, **{f"s{k}": f"{name} \x1b{k}" for k in range(10)}) for name in "ab"]
    table = compare_runs(folders)
    assert "a \\x1b7" in table and "s8" not in table
    assert table.endswith("\n2 more settings differ: see each config.yaml")


def test_the_command_takes_patterns(commands, run_of, tmp_path):
    run_of("lr-1", evaluation(1, 0.5))
    said = commands.run("report.py", f"--runs={tmp_path}/lr-*").require_success().output
    assert f"{tmp_path}/lr-1  0.5000" in said
    commands.run("report.py", f"--runs={tmp_path}/x*").require_explained_failure("got no folder")
    with pytest.raises(ConfigError, match=f"config.yaml, got {tmp_path}$"):
        compare_runs([tmp_path])
