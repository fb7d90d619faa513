"""A few real photographs at a small size are learned by heart: the whole chain can reach AP 1."""

import json

import pytest
from commands import python
from conftest import BACKBONE

from object_detection.data.coco_json import read_annotations
from object_detection.data.convert import convert

NUM_IMAGES = 4


def is_easy(image, annotations):
    """True for a photograph with few objects, all of them large."""
    size = image["width"] * image["height"]
    return 1 <= len(annotations) <= 4 and all(
        a["area"] > 0.04 * size and not a["iscrowd"] for a in annotations
    )


def few_of(content):
    """Returns the COCO content of the first NUM_IMAGES easy images."""
    of_image = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    easy = [image for image in content["images"] if is_easy(image, of_image[image["id"]])]
    chosen = easy[:NUM_IMAGES]
    assert len(chosen) == NUM_IMAGES, f"only {len(chosen)} images with few large objects"
    annotations = [a for image in chosen for a in of_image[image["id"]]]
    return {**content, "images": chosen, "annotations": annotations}


@pytest.mark.slow
def test_a_few_photographs_are_learned_by_heart(detection_test_data, tmp_path):
    photographs = detection_test_data / "coco_cc"
    source = photographs / "annotations" / "instances_train2017.json"
    annotations = tmp_path / "instances_few.json"
    content = json.loads(source.read_text())
    annotations.write_text(json.dumps(few_of(content)))
    for split in ("train", "val"):
        convert(
            read_annotations(annotations),
            photographs / "train2017",
            tmp_path / split,
            num_shards=1,
        )
    python(
        "train.py",
        "--model_name=efficientdet-lite0",
        "--hparams=image_size=128,bn_momentum=0.8",
        "--noamp",
        "--nouse_xla",
        BACKBONE,
        f"--model_dir={tmp_path / 'run'}",
        f"--training_file_pattern={tmp_path}/train-*.tfrecord",
        f"--val_file_pattern={tmp_path}/val-*.tfrecord",
        f"--val_json_file={annotations}",
        f"--batch_size={NUM_IMAGES}",
        f"--eval_batch_size={NUM_IMAGES}",
        *("--optimizer=adamw", "--lr=0.004", "--warmup_epochs=5", "--weight_decay=0"),
        *("--moving_average_decay=0.9", "--jitter_min=1", "--jitter_max=1", "--noinput_rand_hflip"),
        *("--num_epochs=150", "--checkpoint_period=150", "--seed=1"),
    ).require_success()
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["AP"] > 0.9
