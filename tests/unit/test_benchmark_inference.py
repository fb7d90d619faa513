import csv
import json

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.inference import make_batches, summarize, write_dllogger
from benchmarks.record import append_row
from maskrcnn.nvidia.dllogger_names import DLLOGGER_NAMES


def test_percentiles_are_percentiles():
    seconds = np.arange(1, 101) / 1000.0
    summary = summarize(seconds, batch_size=4)
    assert summary["latency_ms_mean"] == pytest.approx(50.5)
    assert summary["latency_ms_p50"] == pytest.approx(50.5)
    assert summary["latency_ms_p90"] == pytest.approx(90.1)
    assert summary["latency_ms_p99"] == pytest.approx(99.01)
    assert summary["latency_ms_p99"] > summary["latency_ms_mean"]
    assert summary["images_per_s"] == pytest.approx(4 / 0.0505)


def test_dllogger_has_the_keys_of_all_references(tmp_path):
    path, summary = tmp_path / "log.json", summarize(np.arange(1, 101) / 1000.0, batch_size=4)
    write_dllogger(str(path), summary, DLLOGGER_NAMES)
    data = json.loads(path.read_text().removeprefix("DLLL "))["data"]
    for key in ("inference_fps", "inference_perf_fps", "predict_throughput"):
        assert data.pop(key) == pytest.approx(4 / 0.0505)
    for key in ("latency_avg", "predict_latency"):
        assert data.pop(key) == pytest.approx(0.0505)
    assert data.pop("latency_95") == data.pop("predict_latency_95") == pytest.approx(0.09505)
    assert data.pop("inference_latency_ms") == pytest.approx(50.5)
    assert set(data) == {f"{kind}_{q}" for kind in ("latency", "predict_latency") for q in (90, 99)}


def test_rows_of_other_columns_are_refused(tmp_path):
    append_row(tmp_path / "a.csv", {"x": 1, "y": 2})
    append_row(tmp_path / "a.csv", {"y": 4, "x": 3})
    with (tmp_path / "a.csv").open() as file:
        assert [row["y"] for row in csv.DictReader(file)] == ["2", "4"]
    with pytest.raises(ValueError, match="has the columns"):
        append_row(tmp_path / "a.csv", {"x": 1, "z": 2})


def test_batches_fill_up_with_repeated_images(tmp_path):
    from PIL import Image

    for i in range(3):
        Image.fromarray(np.full([40, 80, 3], 50 * (i + 1), np.uint8)).save(tmp_path / f"{i}.png")
    paths = sorted(str(p) for p in tmp_path.glob("*.png"))
    batches = make_batches(paths, size=(64, 64), batch_size=2)
    assert [batch.shape for batch in batches] == [(2, 64, 64, 3)] * 2
    assert [int(batch[i, 5, 5, 0]) for batch in batches for i in range(2)] == [50, 100, 150, 50]


@pytest.mark.slow
def test_command_prints_and_appends_one_row(commands, tmp_path):
    small = "image_size=128,fpn_cell_repeats=1,box_class_repeats=1,fpn_num_filters=16"
    run = commands.run(
        "benchmarks.inference",
        "--model_name=efficientdet-lite0",
        f"--hparams={small}",
        "--batch_size=2",
        "--bm_runs=5",
        "--warmup_runs=1",
        f"--results={tmp_path}/rows.csv",
        f"--dllogger_path={tmp_path}/log.json",
    ).require_success()
    summary = json.loads(run.output.strip().splitlines()[-1])
    assert summary["latency_ms_p50"] <= summary["latency_ms_p99"]
    with (tmp_path / "rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    half = bool(tf.config.list_physical_devices("GPU"))  # emulated, and slow, on a CPU
    assert row["precision"] == ("mixed_float16" if half else "float32")
    assert row["batch_size"] == "2"
    assert float(row["latency_ms_p99"]) == summary["latency_ms_p99"]
    assert '"inference_fps"' in (tmp_path / "log.json").read_text()
