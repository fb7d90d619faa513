"""The references' command lines through train.py and eval.py: YAML files, named sets, arguments."""

import json

import pytest
from test_maskrcnn import TINY

from dataset.embedded.make_set import write_embedded_set
from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert

pytestmark = pytest.mark.slow

FILE = "maskrcnn/configs/e2e_mask_rcnn_R_50_FPN_1x.yaml"
NETWORK = f"{TINY[1]},canvases=[[128,128]]"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a catalog of two training and two test sets, and records with PNG masks."""
    folder = tmp_path_factory.mktemp("data")
    made = write_embedded_set(
        folder / "coco", num_train=2, num_eval=1, image_size=96, report=lambda line: None
    )
    annotations = read_annotations(made.train_annotations)
    for prefix, mask_format in (
        *(("records/one", "bitpacked"), ("records/two", "bitpacked")),
        *(("png/train", "png"), ("png/val", "png")),
    ):
        convert(
            annotations, made.train_images, folder / prefix, num_shards=1, mask_format=mask_format
        )
    entries = {
        name: {"ann_file": str(made.train_annotations), "records": f"records/{name}-*"}
        for name in ("one", "two")
    }
    (folder / "sets.yaml").write_text(json.dumps(entries))
    return folder


def test_a_yaml_file_with_several_sets(commands, data, tmp_path):
    sets = (f"--data_catalog={data}/sets.yaml", "--test_sets=one,two")
    run = tmp_path / "run"
    trained = commands.run(
        "train.py",
        *("--config-file", FILE, NETWORK, "--seed=5", "--nouse_xla", f"--model_dir={run}"),
        *(*sets, "--train_sets=one,two"),
        *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "TEST.IMS_PER_BATCH", "2"),
        *("MODEL.WEIGHT", "", "TEST.EXPECTED_RESULTS", "[['segm','AP',[0.9,0.001]]]"),
    ).require_success()
    assert "4 images" in trained.output
    assert "proposals are chosen for each image" in trained.output
    assert trained.output.count("FAIL segm AP") == 2 and "data set two" in trained.output
    scores = [
        json.loads((run / folder / "metrics.json").read_text())
        for folder in ("evaluation", "evaluation/two")
    ]
    assert scores[0]["mask_AP"] == pytest.approx(scores[1]["mask_AP"], abs=1e-6)
    assert (run / "last_checkpoint").read_text() == "ckpt-00000002\n"

    evaluated = commands.run(
        "eval.py",
        *("--config-file", FILE, *sets, "--skip-eval", f"--output_dir={tmp_path}/out"),
        *("OUTPUT_DIR", str(run), "MODEL.WEIGHT", "", "MODEL.ROI_HEADS.DETECTIONS_PER_IMG", "3"),
        *("MODEL.ROI_HEADS.SCORE_THRESH", "0.0"),
    ).require_success()
    assert "segm AP" not in evaluated.output
    for name in ("one", "two"):
        found = json.loads((tmp_path / "out" / name / "segm.json").read_text())
        assert 0 < len(found) <= 2 * 3
        assert "AP" not in json.loads((tmp_path / "out" / name / "metrics.json").read_text())


def test_the_tf2_programs_arguments_with_its_masks(commands, data, tmp_path):
    trained = commands.run(
        "train.py",
        *("--model_name=maskrcnn-r50-fpn", NETWORK, "--seed", "5", "--noamp"),
        *("--data_dir", f"{data}/png", "--model_dir", f"{tmp_path}/run", "--skip-test"),
        *("--epochs", "1", "--steps_per_epoch", "1", "--train_batch_size", "2", "--log_every", "1"),
        *("--learning_rate_values", "0.01", "0.001", "--learning_rate_boundaries", "0.3", "8.0"),
    ).require_success()
    assert "learning rate 0.0025: 0.00125 per image" in trained.output
    assert "8 times too high on 1 rank" in trained.output
    assert "masks as PNG images" in trained.errors and "--include_masks" in trained.errors
    assert "evaluation took" not in trained.output


def test_an_efficientdet_run_given_one(commands, tmp_path):
    result = commands.run("train.py", "--learning_rate_values", "0.01", f"--model_dir={tmp_path}")
    result.require_explained_failure("--learning_rate_values is for Mask R-CNN")
