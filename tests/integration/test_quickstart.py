"""The quick start from a generated set to its RESULT line, and what a second call does again."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from commands import ROOT, run_from_scratch
from left_by_runs import recorded

pytestmark = [pytest.mark.slow, pytest.mark.multi]
RESULT = re.compile(
    r"RESULT model=efficientdet-lite0 data=embedded AP=(\d\.\d{4}) AP50=(\d\.\d{4}) "
    r"train_images=16 eval_images=6 minutes=(\d+\.\d)"
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Two calls of the quick start with the same arguments: their results and the output folder."""
    output = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, ROOT / "scripts" / "quickstart.py", "--output", output]
    command += ["--generate", "16", "6", "--minutes", "0.15", "--image_size", "128"]
    command += ["--batch_size", "4", "--pictures", "3"]
    small = "image_size=128,fpn_num_filters=16,fpn_cell_repeats=1,box_class_repeats=1"
    command += ["--", f"--hparams={small}"]
    first = run_from_scratch(command, timeout=600).require_success()
    logs = sorted(p.name for p in (output / "run").glob("*.log"))
    second = run_from_scratch(command, timeout=600).require_success()
    return SimpleNamespace(output=output, first=first, logs=logs, second=second)


def test_last_line_is_the_result(quickstart):
    last = quickstart.first.output.splitlines()[-1]
    matched = RESULT.fullmatch(last)
    assert matched, last
    metrics = json.loads((quickstart.output / "run" / "evaluation" / "metrics.json").read_text())
    assert matched[1] == f"{metrics['AP']:.4f}"
    assert matched[2] == f"{metrics['AP50']:.4f}"
    assert float(matched[3]) > 0


def test_two_ranks_trained_for_the_time_asked(quickstart):
    said = quickstart.first.output
    assert "2 rank(s)" in said
    assert len(recorded(quickstart.output / "run")) > 4
    # That the rate falls to 0 within the time needs more steps: tests/unit/engine/test_loop.py.
    minutes, seconds = re.search(
        r"done: \d+ steps in (?:(\d+)m)?(\d+)s", quickstart.first.output
    ).groups(default="0")
    assert 60 * int(minutes) + int(seconds) >= 0.15 * 60


def test_pictures_of_held_out_images_are_there(quickstart):
    shown = (quickstart.output / "held-out.txt").read_text().splitlines()
    assert len(shown) == 3
    assert all("/val/" in path for path in shown)
    pictures = {path.name for path in (quickstart.output / "pictures").iterdir()}
    assert len(pictures) == 5
    assert {"contact-sheet.png", "detections.json"} < pictures
    assert str(quickstart.output / "pictures") in quickstart.first.output


def test_the_report_is_named_and_shows_the_run(quickstart):
    page = quickstart.output / "run" / "evaluation" / "report.html"
    assert f"report      {page}\n" in quickstart.first.output
    text = page.read_text()
    assert 'id="training"' in text and "data:image/jpeg" in text
    assert (quickstart.output / "run" / "first_batch.jpg").is_file()


def test_second_call_reuses_data_records_and_training(quickstart):
    said = quickstart.second.output
    assert "is complete, reused" in said
    assert "records of" in said
    assert "is complete; delete that folder to train again" in said
    assert "converting" not in said
    assert quickstart.logs == sorted(p.name for p in (quickstart.output / "run").glob("*.log"))
    assert said.splitlines()[-1] == quickstart.first.output.splitlines()[-1]


def test_a_model_whose_weights_are_not_known_is_refused_before_data_is_made(tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, ROOT / "scripts" / "quickstart.py", "--output", output]
    result = run_from_scratch([*command, "--model", "efficientdet-d0"], timeout=120)
    assert result.code == 2
    assert "-- --backbone_init=FILE or -- --pretrained_ckpt=FILE" in result.errors
    assert not output.exists()


@pytest.mark.nightly
def test_mask_r_cnn_ends_with_scores_of_masks(tmp_path):
    small = "image_size=96*96,backbone_width=8,backbone_repeats=[1,1,1,1],fpn_num_filters=16,"
    small += "box_mlp_dim=32,mask_conv_dims=[8]"
    command = [sys.executable, ROOT / "scripts" / "quickstart.py", "--output", tmp_path]
    command += ["--model", "maskrcnn", "--generate", "6", "2", "--minutes", "0.05"]
    command += ["--pictures", "1", "--", f"--hparams={small}"]
    result = run_from_scratch(command, timeout=600).require_success()
    last = result.output.splitlines()[-1]
    numbers = r"AP=\d\.\d{4} AP50=\d\.\d{4} mask_AP=\d\.\d{4} mask_AP50=\d\.\d{4}"
    assert re.search(f"model=maskrcnn-r50-fpn data=embedded {numbers} train_images=6 ", last), last
    assert (tmp_path / "pictures" / "contact-sheet.png").exists()
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert f"mask_AP={metrics['mask_AP']:.4f}" in last
