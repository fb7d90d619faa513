"""infer.py on a Mask R-CNN checkpoint: pictures, heat maps and JSON with masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as mask_api
from tiny_runs import SMALLEST_MASK

from engine.config.fields import to_dict
from engine.files import checkpoint
from engine.start import cli
from maskrcnn.settings import base_config
from maskrcnn.task import MaskRcnnTask
from object_detection.records.class_map import ClassMap

CLASSES = ClassMap(2, {0: (3, "cat"), 1: (8, "dog")})


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A checkpoint of a narrow network that answers something on any image."""
    hparams = f"{SMALLEST_MASK.removeprefix('--hparams=')},test_detections_per_image=5"
    config = cli.resolve(base_config("maskrcnn-r50-fpn"), recipe="", hparams=hparams)
    task = MaskRcnnTask(config, CLASSES)
    generator = tf.random.Generator.from_seed(1)
    for variable in task.model.trainable_variables:
        if "mask" in variable.name:
            variable.assign(generator.normal(variable.shape, stddev=0.3))
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(
        folder / "ckpt-00000001",
        {f"model/{v.name.removesuffix(':0')}": v for v in task.model.variables},
        {"config": to_dict(task.config), "task": {"class_map": CLASSES.to_dict()}},
    )
    return folder


@pytest.mark.slow
def test_masks_are_written_and_drawn(commands, run_folder, tmp_path):
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, [50, 70, 3]).astype(np.uint8)
    Image.fromarray(pixels).save(photo)
    result = commands.run(
        "infer.py",
        f"--image_path={photo}",
        f"--model_dir={run_folder}",
        f"--output_dir={tmp_path / 'out'}",
        "--min_score_thresh=0.01",
        "--heat_map=probability",
    ).require_success()
    assert "5 objects" in result.output
    names = {"photo-detections.png", "photo-heat.png", "detections.json", "contact-sheet.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [entry["file_name"] for entry in found] == [str(photo)] * 5
    areas = []
    for entry in found:
        assert (entry["category_id"], entry["name"]) in CLASSES.categories.values()
        mask = mask_api.decode(entry["segmentation"])
        assert mask.shape == (50, 70)
        x, y, width, height = entry["bbox"]
        rows, columns = np.nonzero(mask)
        areas.append(len(rows))
        if len(rows):
            assert y - 2 <= rows.min() and rows.max() <= y + height + 2
            assert x - 2 <= columns.min() and columns.max() <= x + width + 2
    assert max(areas) > 0
    pictures = {
        name: np.asarray(Image.open(tmp_path / "out" / f"photo-{name}.png")).astype(int)
        for name in ("detections", "heat")
    }
    # Small images are enlarged.
    plain = Image.fromarray(pixels).resize((280, 200), Image.Resampling.LANCZOS)
    assert (np.abs(pictures["detections"] - np.asarray(plain)).max(axis=-1) > 20).mean() > 0.02
    assert pictures["heat"].shape == (200, 280, 3)
    assert (np.ptp(pictures["heat"], axis=-1) > 5).any(), "heat on grey"
