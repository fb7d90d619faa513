"""Exports for other runtimes: compared on photographs, run by the scripts beside them."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

import families
from detector import export_target, portable
from detector.export_target import Target, check_target
from detector.portable import export_portable
from engine.config.fields import ConfigError, override
from object_detection.records.class_map import ClassMap
from object_detection.serve.fidelity import LIMITS, Gaps, dense_gaps, detection_gaps
from object_detection.serve.image_files import known_photographs, read_image

CLASSES = ClassMap(2, {0: (3, "cat"), 1: (8, "dog")})
LITE = {
    "model.image_size": (64, 64),
    "model.max_level": 5,
    "model.anchor_scale": 1.0,
    "model.fpn_num_filters": 8,
    "model.fpn_cell_repeats": 1,
    "model.box_class_repeats": 1,
    "nms_configs.max_output_size": 20,
}
MASKS = {
    "model.image_size": (64, 96),
    "model.canvases": ((64, 96),),
    "model.backbone_width": 8,
    "model.backbone_repeats": (1, 1, 1, 1),
    "model.norm": "batch_norm",
    "model.freeze_at": 0,
    "model.fpn_num_filters": 8,
    "model.box_mlp_dim": 16,
    "model.mask_conv_dims": (8,),
    "model.mask_deconv_dim": 8,
    "model.anchor_sizes": (12, 24, 48, 96, 128),
    "rpn.test_rpn_pre_nms_topn": 40,
    "rpn.test_rpn_post_nms_topn": 20,
    "test.test_detections_per_image": 6,
    "test.test_score_thresh": 0.0,
}
PHOTOGRAPHS = known_photographs()[:2]
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("tf2onnx", "onnxruntime"))),
    reason="tf2onnx and onnxruntime come with scripts/setup_env.sh --extra export",
)
in_turn = pytest.mark.nightly("portable")


def task_of(model_name, changes):
    config = override(families.base_config(model_name), changes, source="test")
    return families.load(model_name).new_task(config, class_map=CLASSES)


@pytest.fixture(scope="module")
def lite():
    """A small EfficientDet whose scores and boxes differ from place to place."""
    tf.keras.utils.set_random_seed(0)
    task = task_of("efficientdet-lite0", LITE)
    images = tf.constant(portable.fitted_batches(task, photographs(), 2)[0])
    for kind, head, deviation in (("class_logits", "class", 1.0), ("box_deltas", "box", 0.1)):
        kernels = [
            variable
            for variable in task.model.trainable_variables
            if f"{head}-predict/pointwise" in variable.name
        ]
        assert kernels
        heads = task.run_stage(images, "heads")
        values = np.concatenate([np.ravel(v) for name, v in heads.items() if kind in name])
        for kernel in kernels:
            kernel.assign(kernel * deviation / np.std(values))
    return task


@pytest.fixture(scope="module")
def masks():
    """A small Mask R-CNN with random weights of the size that keeps signals alive.

    What its heads say last is made as small as scores and deltas are.
    """
    task = task_of("maskrcnn-r50-fpn", MASKS)
    generator = np.random.default_rng(0)
    for variable in task.model.trainable_variables:
        if len(variable.shape) > 1:
            deviation = 1.5 / np.sqrt(np.prod(variable.shape[:-1]))
            if re.search("cls_|bbox_pred|_logits", variable.name):
                deviation /= 40 if "bbox_pred" in variable.name else 10
            variable.assign(generator.normal(0.0, deviation, variable.shape))
    return task


def photographs():
    return [read_image(path).pixels for path in PHOTOGRAPHS]


def run_beside(folder, monkeypatch, capsys):
    """Returns what run.py of an export says of a photograph."""
    monkeypatch.setattr(sys, "argv", ["run.py", PHOTOGRAPHS[0]])
    capsys.readouterr()
    runpy.run_path(str(folder / "run.py"))
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "format", "stage", "precision"),
    [
        pytest.param("lite", "onnx", "detections", "float32", marks=needs_onnx),
        pytest.param("lite", "tflite", "heads", "int8", marks=in_turn),
        pytest.param("lite", "tflite", "boxes", "float16", marks=in_turn),
        pytest.param("lite", "savedmodel", "boxes", "float32", marks=in_turn),
        pytest.param(
            "lite", "tensorrt-plan-script", "heads", "float16", marks=[in_turn, needs_onnx]
        ),
        pytest.param("masks", "tflite", "detections", "float32", marks=in_turn),
        pytest.param("masks", "onnx", "detections", "float32", marks=[in_turn, needs_onnx]),
    ],
)
def test_a_file_is_compared_and_runs(
    family, format, stage, precision, tmp_path, monkeypatch, capsys, request
):
    folder, target = tmp_path / "out", Target(format, stage, precision, 1)
    task = request.getfixturevalue(family)
    line = export_portable(task, folder, target, photographs())
    assert "on 2 images it differs from the checkpoint in scores by " in line
    about = json.loads((folder / "interface.json").read_text())
    assert about["input"] == [1, *task.network_sizes[0], 3] and about["stage"] == stage
    said = run_beside(folder, monkeypatch, capsys)
    if stage == "detections":
        assert "detections; the best" in said and ("cat" in said or "dog" in said)
        assert re.search(r"\[\d+\.\d, .*\.\d\]\n", said) and not re.search(r"\.\d{5}", said)
        assert "masks" in about["outputs"] or family == "lite"
    else:
        assert {words.split()[0] for words in said.splitlines()} == set(about["outputs"])
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["out"]
    if format == "tensorrt-plan-script":
        assert "trtexec --onnx=model.onnx" in (folder / "build_plan.sh").read_text()


@pytest.mark.slow
def test_the_command_says_what_it_does(commands, trained_run, tmp_path, monkeypatch, capsys):
    """Of a trained network."""
    folder = tmp_path / "out"
    flags = (f"--model_dir={trained_run.folder}", f"--saved_model_dir={folder}", "--format=tflite")
    said = commands.run("export.py", *flags, "--image_size=128").require_success().output
    lines = said.splitlines()
    assert lines[0].startswith(f"exporting {trained_run.folder} as tflite (detections, float32)")
    assert f"{folder}/model.tflite: on 4 images it differs from the checkpoint in scores" in said
    found = run_beside(folder, monkeypatch, capsys)
    assert "detections; the best" in found
    with monkeypatch.context() as alone:  # where there is the interpreter alone
        package = types.SimpleNamespace(Interpreter=tf.lite.Interpreter)
        for name in ("ai_edge_litert", "ai_edge_litert.interpreter"):
            alone.setitem(sys.modules, name, package)
        alone.setitem(sys.modules, "tensorflow", None)
        assert run_beside(folder, alone, capsys) == found
    refused = commands.run("export.py", *flags, "--precision=int8").require_explained_failure()
    assert "the nearest is --format=tflite --stage=heads --precision=int8" in refused


def test_a_file_that_differs_gets_no_name(lite, tmp_path, monkeypatch):
    target = Target("tflite", "boxes", "float32", 1)
    monkeypatch.setattr(portable.portable, "convert", lambda module, folder, **_: folder / "file")

    def open_runtime(path, *, format):
        def run(images):
            found = lite.run_stage(tf.constant(images), "boxes")
            return {name: value.numpy() + 0.01 for name, value in found.items()}

        return run

    monkeypatch.setattr(portable.portable, "open_runtime", open_runtime)
    with pytest.raises(ValueError, match=r"differs from the checkpoint: scores by 0.01, boxes"):
        export_portable(lite, tmp_path / "out", target, photographs())
    assert not (tmp_path / "out").exists()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds something else"):
        export_portable(lite, tmp_path, target, photographs())


def test_the_stages_agree_with_detection_on_the_same_image(lite):
    (batch,) = portable.fitted_batches(lite, photographs()[:1], 1)
    image = tf.constant(np.round(batch).clip(0, 255).astype(np.uint8))
    ours = lite.detect_images(image)
    found = lite.run_stage(tf.cast(image, tf.float32), "detections")
    for name, value in ours._asdict().items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-3)
    assert ours.scores[0, 0] > 0.3
    boxes = lite.run_stage(tf.cast(image, tf.float32), "boxes")
    best = np.unravel_index(np.argmax(boxes["scores"][0]), boxes["scores"].shape[1:])
    assert best[1] == ours.classes[0, 0]
    assert boxes["scores"][0][best].numpy() == pytest.approx(float(ours.scores[0, 0]), abs=1e-5)
    inside = np.clip(boxes["boxes"][0, best[0]], 0, 64)
    np.testing.assert_allclose(inside, ours.boxes[0, 0], atol=1e-2)


@pytest.mark.parametrize(
    ("target", "stages", "message"),
    [
        (
            Target("onnx", "heads", "int8"),
            export_target.STAGES,
            "is written in float32, not in int8; the nearest is --format=onnx --stage=heads "
            "--precision=float32",
        ),
        (
            Target("tflite", "heads", "float16"),
            ("detections",),
            "maskrcnn-r50-fpn has no stage heads .*; the nearest is --format=tflite "
            "--stage=detections --precision=float16",
        ),
        (
            Target("tflite", "boxes", "int8"),
            export_target.STAGES,
            "int8 is for --stage=heads, .* --stage=heads --precision=int8",
        ),
        (
            Target("savedmodel", "detections", "float16"),
            export_target.STAGES,
            "not in float16; the nearest is --format=savedmodel --stage=detections",
        ),
    ],
)
def test_what_is_not_offered_is_said_with_the_nearest(target, stages, message):
    with pytest.raises(ConfigError, match=message):
        check_target(target, stages=stages, model_name="maskrcnn-r50-fpn")


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr(export_target.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tf2onnx and onnxruntime: .*--extra export"):
        check_target(Target("onnx", "heads", "float32"))


def test_gaps_of_detections_know_places_and_classes():
    found = {
        "boxes": np.array([[[0, 0, 0.5, 0.5], [0.2, 0.2, 0.9, 0.9]]], np.float32),
        "scores": np.array([[0.6, 0.6]], np.float32),
        "classes": np.array([[0, 1]]),
        "num_valid": np.array([2]),
        "masks": np.zeros([1, 2, 3, 3], np.float32),
    }
    limits = LIMITS["float32"]
    swapped = {k: v if k == "num_valid" else v[:, ::-1] for k, v in found.items()}
    assert detection_gaps(found, swapped, limits=limits) == Gaps(0.0, 0.0)
    unused = {**found, "classes": np.array([[-1, 1]])}  # a channel without a category
    assert detection_gaps(unused, unused, limits=limits) == Gaps(0.0, 0.0)
    for changes in (
        {"classes": 1 - found["classes"]},
        {"scores": np.array([[0.6, np.nan]], np.float32)},
        {"num_valid": np.array([1])},
    ):
        gaps = detection_gaps(found, {**found, **changes}, limits=limits)
        assert not gaps.within(limits)
    moved = {**found, "boxes": found["boxes"] + 0.01, "masks": found["masks"] + 0.1}
    gaps = detection_gaps(found, moved, limits=limits)
    assert gaps == pytest.approx((0.0, 0.01, 0.1, 0.0), abs=1e-6)
    assert "masks by 0.1" in str(gaps)


def test_gaps_of_unsure_detections_are_seen_too():
    found = {
        "boxes": np.zeros([1, 2, 4], np.float32),
        "scores": np.array([[0.02, 0.01]], np.float32),
        "classes": np.array([[0, 1]]),
        "num_valid": np.array([2]),
    }
    other = {**found, "scores": found["scores"] + np.float32(0.03)}
    gaps = detection_gaps(found, other, limits=LIMITS["float32"])
    assert gaps.scores == pytest.approx(0.03, abs=1e-6)


def test_a_few_rivals_of_nearly_the_same_score_are_no_difference():
    """Two candidates of one object; which of them suppresses the other is rounding's choice."""
    places = np.linspace(0.0, 0.9, 20, dtype=np.float32)[:, np.newaxis]
    found = {
        "boxes": (places + np.array([0.0, 0.0, 0.06, 0.06], np.float32))[np.newaxis],
        "scores": np.linspace(0.9, 0.3, 20, dtype=np.float32)[np.newaxis],
        "classes": np.zeros([1, 20], int),
        "num_valid": np.array([20]),
    }
    limits = LIMITS["float16"]

    def with_other(row, box, score, limits=limits):
        other = {**found, "boxes": found["boxes"].copy(), "scores": found["scores"].copy()}
        other["boxes"][0, row] += np.float32(box)
        other["scores"][0, row] += np.float32(score)
        return detection_gaps(found, other, limits=limits)

    rival = with_other(3, 0.01, 0.005)
    assert rival.within(limits) and rival == pytest.approx((0.0, 0.0, 0.0, 2 / 38))
    assert "5.3% of detections by their choice" in str(rival)
    assert not with_other(3, 0.05, 0.005).within(limits)  # hardly overlaps
    assert not with_other(3, 0.01, -0.5).within(limits)  # much less sure
    assert not with_other(3, 0.01, 0.005, LIMITS["float32"]).within(LIMITS["float32"])
    many = with_other(slice(2, 6), 0.01, 0.005)
    assert not many.within(limits) and many.boxes == pytest.approx(0.01, abs=1e-6)
    assert with_other(19, 0.05, -0.01).within(limits)  # the last of full rows: another's place


def test_gaps_of_anchors_see_every_score():
    ours = {"boxes": np.zeros([1, 30, 4]), "scores": np.linspace(0, 1, 60).reshape(1, 30, 2)}
    theirs = {"boxes": np.full([1, 30, 4], 0.02), "scores": ours["scores"].copy()}
    theirs["scores"][0, 0, 0] = 0.3
    assert dense_gaps(ours, theirs) == Gaps(0.3, 0.02)
    theirs["scores"][:] = np.nan
    assert not dense_gaps(ours, theirs).within(Gaps(1.0, 1.0))
