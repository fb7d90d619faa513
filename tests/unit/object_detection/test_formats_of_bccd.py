"""BCCD in the formats of other tools: the records of its COCO form, and the same training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from samples import read_back, voc_xml, yolo_lines
from tiny_runs import SMALLEST

from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert
from object_detection.convert.prepare import prepare_records


def objects_of(content: dict) -> dict[str, list]:
    """Returns file name -> (class, x, y, width, height) of each object."""
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    objects = {name: [] for name in files.values()}
    for entry in content["annotations"]:
        box = map(int, entry["bbox"])
        objects[files[entry["image_id"]]].append((names[entry["category_id"]], *box))
    return objects


def bccd_as_voc(source: Path, root: Path, content: dict, split: str) -> None:
    (root / "labels.txt").write_text("\n".join(c["name"] for c in content["categories"]))
    lists = root / "ImageSets" / "Main"
    for folder in (lists, root / "Annotations", root / "JPEGImages"):
        folder.mkdir(parents=True, exist_ok=True)
    objects = objects_of(content)
    (lists / f"{split}.txt").write_text("\n".join(Path(name).stem for name in objects))
    for name, listed in objects.items():
        shutil.copy(source / name, root / "JPEGImages")
        path = root / "Annotations" / f"{Path(name).stem}.xml"
        path.write_text(voc_xml(listed, shift=1))


def bccd_as_yolo(source: Path, root: Path, content: dict, split: str) -> None:
    names = [c["name"] for c in content["categories"]]
    (root / "data.yaml").write_text(
        f"train: images/train\nval: images/val\nnames: {json.dumps(names)}"
    )
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True)
    for name, listed in objects_of(content).items():
        shutil.copy(source / name, root / "images" / split)
        path = root / "labels" / split / f"{Path(name).stem}.txt"
        path.write_text(yolo_lines(listed, names, (640, 480)))


def part_of_bccd(source: Path, split: str) -> dict:
    """Returns the instances of a few images."""
    content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
    content["images"] = content["images"][: {"train": 12, "val": 6}[split]]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    return content


@pytest.mark.parametrize("write", [bccd_as_voc, bccd_as_yolo])
def test_bccd_in_another_format_gives_the_same_records(write, tmp_path, detection_test_data):
    source = detection_test_data / "bccd"
    (tmp_path / "set").mkdir()
    for split in ("train", "val"):
        content = part_of_bccd(source, split)
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        write(source / "images", tmp_path / "set", content, split)

    def prepare():
        records = tmp_path / "records"
        return prepare_records(tmp_path / "set", records, with_masks=False, report=lambda _: None)

    made = prepare()
    for name, split in (("train", "train"), ("eval", "val")):
        coco = convert(
            read_annotations(tmp_path / f"{split}.json"),
            source / "images",
            tmp_path / "coco" / name,
            num_shards=8,
        )
        ours = read_back(f"{made.folder}/{name}-*.tfrecord")
        theirs = read_back(f"{tmp_path}/coco/{name}-*.tfrecord")
        assert len(ours) == len(theirs) > 5
        for our, their in zip(ours, theirs):
            del their["image/source_id"]
            for field, value in their.items():
                if "bbox" in field or "area" in field:
                    np.testing.assert_allclose(our[field], value, rtol=1e-4, atol=3e-6)
                else:
                    np.testing.assert_array_equal(our[field], value)
        card = json.loads((made.folder / f"{name}-card.json").read_text())
        assert card["categories"] == json.loads(coco.card_file.read_text())["categories"]
    stamp = (made.folder / "train-card.json").stat().st_mtime_ns
    prepare()
    assert (made.folder / "train-card.json").stat().st_mtime_ns == stamp
    # Unless records are gone.
    next(made.folder.glob("train-*.tfrecord")).unlink()
    prepare()
    assert len(list(made.folder.glob("train-*.tfrecord"))) == 8


def bccd_as_coco(source: Path, root: Path, content: dict, split: str) -> None:
    for folder in ("annotations", split):
        (root / folder).mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for image in content["images"]:
        shutil.copy(source / image["file_name"], root / split)


@pytest.mark.nightly
def test_bccd_trains_alike_from_every_format(commands, tmp_path, detection_test_data):
    source, outcomes = detection_test_data / "bccd", {}
    for write in (bccd_as_coco, bccd_as_voc, bccd_as_yolo):
        data, run = tmp_path / write.__name__, tmp_path / f"run-{write.__name__}"
        data.mkdir()
        for split in ("train", "val"):
            write(source / "images", data, part_of_bccd(source, split), split)
        flags = ("--deterministic", "--seed=3", "--num_epochs=1", "--log_steps=1", "--recipe=")
        commands.run(
            *("train.py", *SMALLEST, *flags, f"--data={data}", f"--model_dir={run}"),
            *("--checkpoint_period=1", "--max_instances_per_image=30"),
        ).require_success()
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows if row["kind"] == "step"]
        scores = json.loads((run / "evaluation" / "metrics.json").read_text())
        outcomes[write.__name__] = losses, scores["AP"]
    losses, precision = outcomes["bccd_as_coco"]
    assert len(losses) == 6 and precision >= 0
    assert outcomes["bccd_as_voc"] == (losses, precision)
    # YOLO's shares have six digits.
    np.testing.assert_allclose(outcomes["bccd_as_yolo"][0], losses, rtol=2e-3)
    assert outcomes["bccd_as_yolo"][1] == pytest.approx(precision, abs=0.01)
