"""Benchmarks at small size: JSON on the last line, a row that names its circumstances."""

import csv
import gzip
import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2

from benchmarks.export_step import aliases
from benchmarks.parts import synthetic_outputs, synthetic_set
from benchmarks.program_arguments import describe, draw_normal, rebuild
from dataset.embedded.make_set import write_embedded_set
from object_detection.boxes.anchors import generate_anchors
from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert
from object_detection.metrics.coco import CocoEvaluator

TINY_MODEL = (
    "--model_name=efficientdet-lite0",
    "--hparams=image_size=64,fpn_cell_repeats=1,box_class_repeats=1,fpn_num_filters=8",
)


@pytest.fixture
def run(commands, tmp_path):
    """Runs a benchmark; returns the JSON of its last line and its CSV row."""

    def run(name, *flags):
        rows = tmp_path / "rows.csv"
        result = commands.run(f"benchmarks.{name}", *flags, f"--results={rows}").require_success()
        with rows.open() as file:
            (row,) = csv.DictReader(file)
        assert row["command"].startswith(f"python -m benchmarks.{name} ")
        assert row["commit"] and row["machine"] and row["date"]
        return json.loads(result.output.splitlines()[-1]), row

    return run


def test_scorers_agree(run):
    small = ("--images=20", "--detections=10", "--num_classes=5")
    said, row = run("parts", "--part=scoring", *small)
    assert said["pycocotools_s"] > 0
    assert 0.05 < said["AP"] < 1
    assert row["detections"] == "200"


def test_synthetic_detections_of_objects_are_found():
    dataset, rows = synthetic_set(images=10, objects=3, detections=5, num_classes=4)
    assert rows.shape == (50, 7)
    first = rows.reshape(10, 5, 7)[:, :3].reshape(-1, 7)
    metrics = CocoEvaluator(dataset).evaluate(first)
    assert metrics["AP50"] > 0.5
    classes = [a["category_id"] - 1 for a in dataset["annotations"]]
    np.testing.assert_array_equal(first[:, 6], classes)


@pytest.mark.slow
def test_our_suppression_picks_what_tensorflow_s_does(run):
    small = (*TINY_MODEL, "--batch_size=2", "--num_classes=4", "--runs=2", "--nouse_xla")
    said, row = run("parts", "--part=suppression", *small)
    assert said["score_difference"] < 1e-6
    assert float(row["whole_hard_p90_ms"]) >= said["whole_hard_median_ms"] > 0


def test_suppression_of_another_family_is_refused(commands):
    result = commands.run("benchmarks.parts", "--part=suppression", "--model_name=maskrcnn-r50-fpn")
    result.require_explained_failure("suppression is timed of EfficientDet")


STEP = ("train_step", *TINY_MODEL, "--batch_size=2", "--steps=2", "--noamp", "--nouse_xla")


@pytest.mark.nightly
@pytest.mark.slow
def test_step_on_synthetic_input(run):
    said, row = run(*STEP)
    assert said["images_per_s"] > 0 and said["whole_cpu_s"] > 0 and said["peak_memory_gb"] > 0.1
    assert row["data"] == "synthetic" and float(row["update_median_ms"]) > 0


@pytest.mark.slow
def test_step_on_real_input(run, tmp_path):
    write_embedded_set(tmp_path / "coco", num_train=4, num_eval=1, image_size=64, seed=1)
    convert(
        read_annotations(tmp_path / "coco" / "annotations" / "instances_train.json"),
        tmp_path / "coco" / "train",
        tmp_path / "train",
    )
    records = f"{tmp_path}/train-*.tfrecord"
    said, row = run(*STEP, "--whole_only", f"--training_file_pattern={records}")
    assert said["images_per_s"] > 0
    assert row["data"] == records and row["update_median_ms"] == ""


def test_synthetic_objects_stand_out():
    anchors = generate_anchors(
        (64, 64),
        min_level=3,
        max_level=7,
        num_scales=3,
        aspect_ratios=((1.0, 1.0), (1.4, 0.7)),
        anchor_scale=4.0,
    )
    logits, deltas = synthetic_outputs(anchors, batch_size=2, num_classes=3, objects=2)
    assert logits.shape == (2, len(anchors), 3) and deltas.shape == (2, len(anchors), 4)
    strong = (logits > 0).any(axis=2).sum(axis=1)
    assert ((strong >= 2) & (strong < len(anchors) / 2)).all()


@pytest.mark.slow
def test_a_profile_is_summed_up_by_kind(run, tmp_path):
    matrix = tf.random.normal([300, 300])
    multiply = tf.function(lambda x: tf.reduce_sum(x @ x))
    multiply(matrix)
    tf.profiler.experimental.start(str(tmp_path / "run" / "train"))
    for _ in range(20):
        multiply(matrix)
    tf.profiler.experimental.stop()
    shares, row = run("profile_summary", f"--model_dir={tmp_path}/run")
    assert row["largest"] == "MatMul" == max(shares, key=shares.get)
    assert 0.5 < shares["MatMul"] <= sum(shares.values()) <= 1.0


def test_the_busy_share_of_a_gpu_is_that_of_its_kernels():
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    from benchmarks.profile_summary import busy_share

    space = xplane_pb2.XSpace()
    host, gpu = space.planes.add(name="/host:CPU"), space.planes.add(name="/device:GPU:0")
    assert busy_share(space) is None
    for number, name in enumerate(("kernel", "MemcpyH2D"), start=1):
        gpu.event_metadata[number].name = name
    host.lines.add(name="Stream").events.add(metadata_id=1, duration_ps=10**9)
    # Microseconds: kernels 0..40, 30..50 beside it, 90..100; copies do not count.
    streams = {5: [(1, 0, 40), (1, 90, 10)], 6: [(1, 30, 20)], 7: [(2, 50, 40)]}
    for stream, events in streams.items():
        line = gpu.lines.add(name=f"Stream #{stream}(Compute)", timestamp_ns=1000)
        for kind, start, duration in events:
            line.events.add(metadata_id=kind, offset_ps=start * 10**6, duration_ps=duration * 10**6)
    gpu.lines.add(name="XLA Modules").events.add(metadata_id=1, duration_ps=10**9)
    assert busy_share(space) == pytest.approx(0.6)


@pytest.mark.slow
def test_reductions_are_timed(run):
    said, row = run("parts", "--part=reduction", *TINY_MODEL, "--runs=2", "--num_classes=4")
    assert set(said) == {f"{n}_median_ms" for n in ("flat", "flat_half", "grouped", "single")}
    assert row["ranks"] == "1"
    assert float(row["megabytes"]) > 10


def test_aliases_are_read_from_the_header():
    header = (
        "HloModule m, input_output_alias={ {2}: (3, {}, may-alias), {13}: (5, {}, may-alias) }, "
        "entry_computation_layout={(f32[3]{0}, s32[])->(f32[], f32[3]{0})}\nbody {7}: (8, {}"
    )
    assert aliases(header) == {2: 3, 13: 5}
    assert aliases("HloModule m, entry_computation_layout={()->()}\n") == {}


def test_arguments_are_made_again_from_what_is_stored_of_them():
    rng = np.random.default_rng(0)
    images = np.tile(rng.integers(0, 256, [2, 8, 8, 3]).astype(np.uint8), (3, 1, 1, 1))
    noise = draw_normal([40, 30], seed=5, mean=1.0, deviation=0.5)
    small = rng.normal(size=[7]).astype(np.float32)
    flat = np.zeros([1 + 10, 128], np.float32)
    flat[0, :7], flat.reshape(-1)[128 : 128 + 1200] = small, noise.reshape(-1)
    values = [images, noise, small, np.zeros([500], np.int32), flat]
    made = [{}, {"normal": [5, 1.0, 0.5]}, {}, {}, {"join": [[2, 1], 128]}]
    listed, stored = [], {}
    for index, (value, entry) in enumerate(zip(values, made)):
        kept = None
        if not entry:
            entry, kept = describe(value, repeats=3 if index == 0 else 1)
        if kept is not None:
            stored[str(index)] = kept
        listed.append({"shape": value.shape, "dtype": str(value.dtype), **entry})
    assert {name: array.size for name, array in stored.items()} == {"0": images.size // 3, "2": 7}
    for value, again in zip(values, rebuild(listed, stored)):
        assert again.dtype == value.dtype
        np.testing.assert_array_equal(again, value)
    assert abs(noise.mean() - 1.0) < 0.05 and abs(noise.std() - 0.5) < 0.05


@pytest.mark.nightly
@pytest.mark.slow
def test_exported_step_has_its_arguments(commands, tmp_path):
    flags = ("--noamp", "--batch_size=2", "--num_classes=4", "--canvas_size=96", "--check")
    result = commands.run("benchmarks.export_step", *TINY_MODEL, *flags, f"--output_dir={tmp_path}")
    result.require_success()
    program = json.loads((tmp_path / "program.json").read_text())
    text = gzip.decompress((tmp_path / "program.hlo.gz").read_bytes())
    module = hlo_pb2.HloModuleProto.FromString(text)
    opcodes = {i.opcode for c in module.computations for i in c.instructions}
    assert "convolution" in opcodes and "copy" not in opcodes
    with np.load(tmp_path / "arguments.npz") as stored:
        arguments = rebuild(program["arguments"], stored)
        assert sum(stored[name].nbytes for name in stored.files) < 1_500_000
    assert [list(a.shape) for a in arguments] == [a["shape"] for a in program["arguments"]]
    assert [str(a.dtype) for a in arguments] == [a["dtype"] for a in program["arguments"]]
    # The flat buffer of the weights is made of the model's variables; momentum is zero.
    joined = [arguments[i] for i, a in enumerate(program["arguments"]) if "join" in a]
    assert any(0 < np.abs(buffer).max() < 100 for buffer in joined)
    (images,) = (a for a in arguments if a.dtype == np.uint8)
    assert images.shape == (2, 96, 96, 3) and len(np.unique(images)) == 256
    replaced = program["replaced_arguments"].values()
    assert len(set(replaced)) == len(replaced) > 100
    with np.load(tmp_path / "expected.npz") as stored:
        numbers = dict(zip(program["outputs"], stored["arr_0"]))
    assert np.isfinite(list(numbers.values())).all()
    assert numbers["loss"] > numbers["reg_l2_loss"] > 0 and numbers["skipped"] == 0
