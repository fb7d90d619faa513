"""What can be wrong with what eval.py, infer.py, export.py and the quick start are given.

As in test_bad_input.py: a failure code, an explanation with the words that matter, nothing written.
"""

import functools
import operator
import shutil

import pytest
from samples import changed_json, exchange_categories

from object_detection.coco.annotations import read_annotations
from object_detection.convert.convert import convert


@pytest.fixture
def evaluate(commands, tiny_set, trained_run, tmp_path):
    """Runs eval.py on the trained run with some flags changed."""

    def run(*flags):
        output = f"--output_dir={tmp_path / 'scores'}"
        path = f"--ckpt_path={trained_run.folder}"
        return commands.run("eval.py", path, *tiny_set.eval_flags, output, *flags)

    return run


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--ckpt_path={tmp}", ["no complete checkpoint", "{tmp}"]),
        ("--ckpt_path=/nowhere/ckpt-1", ["/nowhere/ckpt-1"]),
        ("--ckpt_path=", ["--ckpt_path is required"]),
        ("--only_this_epoch=7", ["emackpt-07", "emackpt-04"]),
        ("--hparams=num_classes=12", ["num_classes=12", "8 classes"]),
        ("--output_dir={tmp}/file/scores", ["--output_dir"]),
    ],
)
def test_evaluation_without_what_it_needs(evaluate, tmp_path, flag, words):
    (tmp_path / "file").write_text("")
    result = evaluate(flag.format(tmp=tmp_path))
    result.require_explained_failure(*(word.format(tmp=tmp_path) for word in words))
    assert not (tmp_path / "scores").exists() or flag.startswith("--hparams")


def test_evaluation_on_another_data_set(evaluate, tiny_set, tmp_path):
    path = changed_json(tiny_set.annotations, tmp_path / "other.json", exchange_categories)
    convert(read_annotations(path), tiny_set.images, tmp_path / "other", num_shards=1)
    evaluate(
        f"--val_file_pattern={tmp_path}/other-*", f"--val_json_file={path}"
    ).require_explained_failure("1002")


IMPOSSIBLE = "model that can be built on this machine"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (["config", "model", "image_size"], [1 << 24] * 2, [IMPOSSIBLE, "MemoryError"]),
        (["config", "model", "image_size"], [-128, 128], [IMPOSSIBLE]),
        (["task", "class_map"], [1], ["task.class_map to hold num_classes"]),
    ],
    ids=["too large", "negative", "other shape"],
)
def test_checkpoint_of_others_with_an_impossible_description(
    commands, tiny_set, run_to_continue, tmp_path, place, value, words
):
    def change(content):
        del content["description_sha256"]
        *outer, last = place
        functools.reduce(operator.getitem, outer, content)[last] = value

    path = run_to_continue / "ckpt-00000028.json"
    changed_json(path, path, change)
    program = ("eval.py", *tiny_set.eval_flags)
    if "model" in place:
        program = ("infer.py", f"--image_path={next(tiny_set.images.glob('*.jpg'))}")
    commands.run(
        *program, f"--output_dir={tmp_path / 'out'}", f"--ckpt_path={run_to_continue}"
    ).require_explained_failure(str(path), *words)


def test_checkpoint_without_a_description_needs_its_model(evaluate, trained_run, tmp_path):
    for path in (trained_run.folder / "ema_weights").glob("emackpt-12.*"):
        if path.suffix != ".json":
            shutil.copy(path, tmp_path)
    evaluate(
        f"--ckpt_path={tmp_path}/emackpt-12", "--model_name=efficientdet-lite0"
    ).require_explained_failure("emackpt-12", "network")


# ---------------------------------------------------------------------------- inference and export


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--image_path={tmp}/none/*.jpg"], ["{tmp}/none/*.jpg", "glob"]),
        (["--image_path={tmp}"], ["{tmp}", "no image"]),
        (["--image_list={tmp}/none.txt"], ["{tmp}/none.txt"]),
        (["--image_path={image}", "--image_list=x"], ["--image_path", "--image_list"]),
        (["--image_path={image}", "--model_dir="], ["--model_dir", "--saved_model_dir"]),
        (["--image_path={image}", "--model_dir={tmp}"], ["no complete checkpoint", "{tmp}"]),
        (["--image_path={image}", "--model_dir=", "--saved_model_dir={tmp}"], ["SavedModel"]),
        (
            ["--image_path={image}", "--model_dir=", "--saved_model_dir={tmp}", "--hparams=a=1"],
            ["{tmp}, an export, keeps its settings"],
        ),
        (
            ["--image_path={image}", "--model_dir=", "--saved_model_dir={tmp}", "--model_name=a"],
            ["{tmp}, an export, keeps its settings", "--model_name"],
        ),
        (["--image_path={image}", "--output_dir="], ["--output_dir"]),
        (["--image_path={image}", "--min_score_thresh=40"], ["--min_score_thresh=40", "[0, 1]"]),
        (["--image_path={photo}"], ["{photo}", "not a readable image"]),
    ],
)
def test_inference_without_what_it_needs(commands, tiny_set, trained_run, tmp_path, flags, words):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no picture")
    places = {"tmp": tmp_path, "photo": tmp_path / "photos" / "a.jpg"}
    places["image"] = next(tiny_set.images.glob("*.jpg"))
    result = commands.run(
        "infer.py",
        f"--model_dir={trained_run.folder}",
        f"--output_dir={tmp_path / 'drawn'}",
        *(flag.format(**places) for flag in flags),
    )
    result.require_explained_failure(*(word.format(**places) for word in words))
    assert (tmp_path / "drawn").exists() == ("{photo}" in words), "only what is read too late"
    assert not (tmp_path / "drawn" / "detections.json").exists()


def test_export_without_a_checkpoint(commands, tmp_path):
    commands.run(
        "export.py", f"--model_dir={tmp_path}", f"--saved_model_dir={tmp_path / 'out'}"
    ).require_explained_failure("no complete checkpoint", str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_quick_start_on_a_folder_without_annotations(commands, tmp_path):
    (tmp_path / "data").mkdir()
    commands.run(
        "scripts/quickstart.py", f"--data={tmp_path}/data", f"--output={tmp_path}/out"
    ).require_explained_failure(f"{tmp_path}/data")
