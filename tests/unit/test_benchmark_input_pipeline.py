"""The input benchmark at small size: it runs, counts what it should, and finds its data."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from samples import instances

from benchmarks import input_pipeline as benchmark

SIDE = 64


@pytest.fixture(scope="module")
def coco_directory(tmp_path_factory):
    """A COCO directory with six images of noise in train2017."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "train2017").mkdir()
    (folder / "annotations").mkdir()
    noise, numbers = np.random.default_rng(0), range(1, 7)
    for i in numbers:
        pixels = noise.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "train2017" / f"{i}.jpg")
    objects = [(i, 7, (8, 8, 20, 30)) for i in numbers]
    content = instances(numbers, objects, [(7, "thing")], size=(SIDE, SIDE))
    for entry in content["annotations"]:
        entry["segmentation"] = [[8, 8, 28, 8, 28, 38, 8, 38]]
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return folder


SMALL = benchmark.Settings(image_size=64, batch_size=4, rounds=1, images_per_round=8, threads=1)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_both_modes_are_timed_against_the_floor(mode, coco_directory, tmp_path):
    pattern = benchmark.convert_records(
        str(coco_directory), split="", mode=mode, folder=str(tmp_path)
    )
    figures = benchmark.measure(pattern, dataclasses.replace(SMALL, mode=mode))
    assert figures["mode"] == mode
    assert figures["images"] == 6
    assert figures["canvas"] == "64x64"
    ratio = figures["cpu_ms_per_image"] / figures["floor_cpu_ms_per_image"]
    assert figures["ratio_to_floor"] == pytest.approx(ratio)
    assert figures["images_per_s"] > 0


def test_mask_r_cnn_is_measured_with_its_masks(coco_directory, tmp_path):
    settings = dataclasses.replace(SMALL, model_name="maskrcnn-r50-fpn")
    pattern = benchmark.convert_records(
        str(coco_directory), split="", mode="train", folder=str(tmp_path), with_masks=True
    )
    figures = benchmark.measure(pattern, settings)
    assert figures["canvas"] == "64x64" and figures["images_per_s"] > 0


@pytest.mark.slow
def test_the_command_prints_json_and_appends_a_row(commands, coco_directory, tmp_path):
    results = tmp_path / "results.csv"
    small = {**dataclasses.asdict(SMALL), "data_dir": coco_directory, "results": results}
    arguments = [f"--{name}={value}" for name, value in small.items()]
    run = commands.run("benchmarks.input_pipeline", *arguments).require_success()
    last = json.loads(run.output.strip().splitlines()[-1])
    names = ["cpu_ms_per_image", "floor_cpu_ms_per_image", "ratio_to_floor", "images_per_s"]
    assert list(last) == names
    with results.open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["ratio_to_floor"]) == pytest.approx(last["ratio_to_floor"], abs=1e-3)


def test_a_missing_split_is_named_with_those_there_are(coco_directory, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"instances_test\.json.*train2017"):
        benchmark.convert_records(
            str(coco_directory), split="test", mode="eval", folder=str(tmp_path)
        )


def test_a_turn_counts_the_processor_time_of_its_batches(monkeypatch):
    clock = iter([10.0, 10.0, 10.0 + 1.6, 10.0 + 1.6])
    monkeypatch.setattr(benchmark, "_cpu_seconds", lambda: next(clock))
    monkeypatch.setattr(benchmark.time, "sleep", lambda seconds: None)
    taken = []
    turns = benchmark._take_turn(lambda: taken.append(1), batch_size=4, num_batches=10)
    assert len(taken) == 10 + benchmark._AHEAD
    assert turns.cpu_ms_per_image == pytest.approx(1600.0 / (4 * len(taken)))
