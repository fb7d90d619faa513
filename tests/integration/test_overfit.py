"""A few real photographs at a small size are learned by heart: the whole chain can reach AP 1."""

import json
import re

import pytest

# EfficientDet has two thirds of the command's epochs. Of Mask R-CNN it is a smaller form than the
# default, which takes five minutes and comes to a mask AP over 0.95: outlines are as coarse as the
# image.
CASES = {
    "efficientdet-lite0": ([], ["--num_epochs=100", "--checkpoint_period=100"], {"AP": 0.9}),
    "maskrcnn": (
        ["--images", "2", "--image_size", "96"],
        ["--num_epochs=160", "--checkpoint_period=160", "--eval_start=160"],
        {"AP": 0.9, "mask_AP": 0.8},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["efficientdet-lite0", pytest.param("maskrcnn", marks=pytest.mark.nightly)]
)
def test_a_few_photographs_are_learned_by_heart(commands, detection_test_data, tmp_path, model):
    options, flags, least = CASES[model]
    data = ["--data", detection_test_data / "coco_cc", "--output", tmp_path, *options]
    flags = ["--model", model, "--", *flags, "--noreport"]
    result = commands.run("scripts/overfit.py", *data, *flags)
    said = result.require_success().output.splitlines()[-1]
    scores = {name: float(value) for name, value in re.findall(r"(\w+)=(\d\.\d+)", said)}
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    for name, score in least.items():
        assert scores[name] == pytest.approx(metrics[name], abs=1e-4)
        assert scores[name] > score


@pytest.mark.slow
def test_too_few_easy_images_are_told(commands, detection_test_data, tmp_path):
    arguments = ["--data", detection_test_data / "coco_cc", "--output", tmp_path]
    result = commands.run("scripts/overfit.py", *arguments, "--images", "100000")
    result.require_explained_failure("expected 100000", "--images")
