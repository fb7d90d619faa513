"""BCCD in the formats of other tools: the records of its COCO form, and the same training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from samples import read_back
from tiny_runs import SMALLEST

from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert
from object_detection.convert.prepare import prepare_records


def bccd_as_voc(source: Path, root: Path, content: dict, split: str) -> None:
    names = {c["id"]: c["name"] for c in content["categories"]}
    (root / "labels.txt").write_text("\n".join(names.values()))
    lists = root / "ImageSets" / "Main"
    for folder in (lists, root / "Annotations", root / "JPEGImages"):
        folder.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text(
        "\n".join(Path(image["file_name"]).stem for image in content["images"])
    )
    for image in content["images"]:
        shutil.copy(source / image["file_name"], root / "JPEGImages")
        nodes = ""
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, w, h = map(int, entry["bbox"])
                sides = (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h))
                box = "".join(f"<{k}>{v}</{k}>" for k, v in sides)
                name = names[entry["category_id"]]
                nodes += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        path = root / "Annotations" / f"{Path(image['file_name']).stem}.xml"
        path.write_text(f"<annotation>{nodes}</annotation>")


def bccd_as_yolo(source: Path, root: Path, content: dict, split: str) -> None:
    (root / "data.yaml").write_text(
        "train: images/train\nval: images/val\nnames: "
        + json.dumps([c["name"] for c in content["categories"]])
    )
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True)
    for image in content["images"]:
        shutil.copy(source / image["file_name"], root / "images" / split)
        lines = []
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, w, h = entry["bbox"]
                shares = ((x + w / 2) / 640, (y + h / 2) / 480, w / 640, h / 480)
                lines.append(
                    " ".join([str(entry["category_id"] - 1), *(f"{v:.6f}" for v in shares)])
                )
        path = root / "labels" / split / f"{Path(image['file_name']).stem}.txt"
        path.write_text("\n".join(lines))


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
