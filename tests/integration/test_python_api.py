"""`import ringdet` and the command `ringdet`, as they lie in the repository and installed."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from commands import ROOT, run_from_scratch
from PIL import Image

import ringdet
from engine.config.recipe_yaml import parse_hparams
from ringdet import command, own_packages, programs

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
SMALL = "image_size=128,fpn_num_filters=16,fpn_cell_repeats=1,box_class_repeats=1"
# In place of the notebook's cell of that name.
PARAMETERS = {
    "pictures": {"num_train": 6, "num_eval": 2, "image_size": 96},
    "settings": {"train_minutes": 0.05, "batch_size": 2, "report": False, "hparams": SMALL},
}


@pytest.fixture(scope="module")
def model(trained_run):
    return ringdet.load(trained_run.folder)


def test_all_kinds_of_images_give_the_same(model, tiny_set, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted(tiny_set.images.glob("*.jpg"))[:2]:
        with Image.open(path) as image:
            image.save(photos / f"{path.stem}.png")
    (photos / "page.jpg").write_text("<html>")
    with pytest.warns(UserWarning, match="left out: .*page.jpg is not a readable image"):
        found = model.predict(str(photos), min_score=0.02)
    assert [f.path for f in found] == sorted(map(str, photos.glob("*.png")))
    assert sum(map(len, found)) > 0
    pixels = [np.asarray(Image.open(f.path)) for f in found]
    again = model.predict([pixels[0], found[1].path], min_score=0.02)
    assert [f.path for f in again] == ["", found[1].path]
    for one, other, image in zip(found, again, pixels):
        np.testing.assert_array_equal(one.image, image)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        assert one.boxes.shape == (len(one), 4) and one.names == other.names
        assert (one.scores >= 0.02).all() and (np.diff(one.scores) <= 0).all()
        assert one.names == [model.names[i] for i in one.category_ids.tolist()]
        assert one.masks is None and one.draw().shape == image.shape
        assert [entry["score"] for entry in one.entries()] == pytest.approx(one.scores.tolist())
    with pytest.raises(ValueError, match="page.jpg is not a readable image"):
        model.predict(photos / "page.jpg")
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\] in RGB, got float64 \[4, 4"):
        model.predict(np.zeros([4, 4, 3]))


def test_what_numpy_reads_as_an_image_is_one_and_the_rest_is_named(model, tiny_set):
    path = next(iter(sorted(tiny_set.images.glob("*.jpg"))))
    image = Image.open(path)
    kinds = [image, np.asarray(image), tf.constant(np.asarray(image)), [image], (i for i in [path])]
    kinds += [path.read_bytes(), [bytearray(path.read_bytes())]]
    found = [model.predict(kind, min_score=0.02) for kind in kinds]
    assert len({(len(f), f[0].scores.tobytes()) for f in found}) == 1
    assert model.predict([]) == [] and model.predict(np.zeros([0, 8, 8, 3], np.uint8)) == []
    for images, error, says in (
        (image.convert("L"), ValueError, "expected an image as uint8"),
        (np.zeros([0, 8, 3], np.uint8), ValueError, r"got uint8 \[0, 8, 3\]"),
        (b"photos", ValueError, "content of 6 bytes is not a readable image: not an image"),
        (None, TypeError, "got NoneType"),
    ):
        with pytest.raises(error, match=says):
            model.predict(images)
    with pytest.raises(ValueError, match="exif='aply': expected 'apply' or 'ignore'"):
        model.predict(path, exif="aply")
    for score in ("0.4", float("nan"), 40):
        with pytest.raises(ValueError, match=f"min_score={score!r}: expected a number from 0 to 1"):
            model.predict(path, min_score=score)
    with pytest.raises(ValueError, match="which='lst': expected 'best' or 'last'"):
        ringdet.load("nowhere", which="lst")
    with pytest.raises(TypeError, match="load it in each process"):
        pickle.dumps(model)
    assert len(pickle.loads(pickle.dumps(found[0][0]))) == len(found[0][0])


def test_threads_of_a_service_share_a_model(model, tiny_set):
    uploads = [path.read_bytes() for path in sorted(tiny_set.images.glob("*.jpg"))[:4]]
    alone = [model.predict(upload, min_score=0.02)[0] for upload in uploads]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda upload: model.predict(upload, min_score=0.02)[0], uploads * 3))
    assert len({one.scores.tobytes() for one in alone}) > 1
    assert [one.scores.tobytes() for one in found] == [one.scores.tobytes() for one in alone] * 3


def test_of_a_folder_images_too_large_for_memory_are_left_out(model, tmp_path):
    def small(image):
        if image.shape[1] > 50:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return [np.zeros([1, 0, 4]), np.zeros([1, 0]), np.zeros([1, 0], int), np.zeros([1], int)]

    def detector(image):
        return [tf.constant(part) for part in small(image)]

    of_little_memory = ringdet.Model(detector, model._class_map, None)
    for name, side in (("a", 20), ("b", 60), ("c", 20)):
        Image.fromarray(np.zeros([side, side, 3], np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.warns(UserWarning, match="left out: .*b.png: no memory to detect on 60x60 pixels"):
        found = of_little_memory.predict(tmp_path)
    assert [f.path[-5:] for f in found] == ["a.png", "c.png"]
    with pytest.raises(ValueError, match="b.png: no memory to detect"):
        of_little_memory.predict(tmp_path / "b.png")


def test_an_export_is_loaded_as_a_run_is(model, trained_run, tiny_set):
    image = next(iter(sorted(tiny_set.images.glob("*.jpg"))))
    last = ringdet.load(trained_run.folder, which="last").predict(image, min_score=0.1)[0]
    exported = ringdet.load(trained_run.folder / "emackpt-final").predict(image, min_score=0.1)[0]
    np.testing.assert_allclose(exported.scores, last.scores, atol=1e-4)
    for setting in (
        {"preset": "nvidia"},
        {"hparams": "image_size=256"},
        {"model_name": "maskrcnn-r50-fpn"},
    ):
        with pytest.raises(ValueError, match="emackpt-final, an export, keeps its settings"):
            ringdet.load(trained_run.folder / "emackpt-final", **setting)


@pytest.mark.parametrize("hparams", ["num_classes=7", {"num_classes": 7, "image_size": None}])
def test_a_checkpoint_has_its_own_number_of_classes(trained_run, hparams):
    with pytest.raises(ValueError, match="num_classes=7 but the checkpoint has 8 classes: leave"):
        ringdet.load(trained_run.folder, hparams=hparams)


def test_a_video_is_read_frame_by_frame(model, tmp_path, monkeypatch):
    video = tmp_path / "film.mp4"
    video.write_bytes(b"film")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install 'imageio\[ffmpeg\]'"):
        model.predict(video)
    frames = np.zeros([2, 48, 64, 3], np.uint8)
    reader = types.ModuleType("imageio.v3")
    reader.imiter = lambda path, plugin: iter(frames)
    package = types.ModuleType("imageio")
    package.v3 = reader
    for name, module in (("imageio", package), ("imageio.v3", reader)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", types.ModuleType("imageio_ffmpeg"))
    found = list(model.stream(video))
    assert [f.path for f in found] == [f"{video}#0", f"{video}#1"]


def test_evaluation_returns_the_metrics(trained_run, tiny_set, tmp_path, capsys):
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in tiny_set.eval_flags)
    metrics = ringdet.evaluate(
        trained_run.folder, **flags, output_dir=tmp_path, report=False, which="last"
    )
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert "csv format" in capsys.readouterr().out


def test_a_failed_program_is_an_error_with_its_reason(tmp_path):
    with pytest.raises(RuntimeError, match="ringdet train ended with 2: .*did you mean"):
        ringdet.train(model_dir=tmp_path / "run", bach_size=4)


def test_flags_are_written_as_words():
    flags = {"amp": False, "debug": True, "lr": 0.1, "seed": None, "steps": (1, 2)}
    assert programs.as_arguments(flags) == ["--noamp", "--debug", "--lr=0.1", "--steps=1,2"]
    settings = {"image_size": [64, 96], "norm": "a,b", "on": True, "rate": 1e-5}
    (word,) = programs.as_arguments({"hparams": {**settings, "off": None}})
    assert parse_hparams(word.removeprefix("--hparams=")) == settings


def test_the_command_knows_its_programs(capsys, commands):
    assert command.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in programs.PROGRAMS)
    assert all((ROOT / program.path).is_file() for program in programs.PROGRAMS.values())
    assert command.main(["trian"]) == 2
    assert "unknown command 'trian'; did you mean 'train'?" in capsys.readouterr().err
    result = commands.run("ringdet", "export", "--model_dir=nothing")
    assert "--saved_model_dir is required" in result.require_explained_failure()
    for name in ("convert", "check", "draw"):
        assert "--output_dir" in commands.run("ringdet", name, "--help").require_success().output


def test_a_package_of_another_project_is_named(tmp_path, monkeypatch):
    (tmp_path / "their_detection").mkdir()
    (tmp_path / "their_detection" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=f"its own their_detection in .* finds {tmp_path}"):
        own_packages.require_own_packages(["engine", "their_detection"])
    with pytest.raises(ImportError, match="finds none first"):
        own_packages.require_own_packages(["no_such_package"])


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names.update(PARAMETERS)
    assert len(names["detections"]) == 2
    assert 0 <= names["metrics"]["AP"] <= 1


@pytest.mark.slow
@pytest.mark.nightly("installed")
def test_installed_it_finds_its_programs(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "quickstart", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    target = tmp_path / "target"
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--target", target]
    run_from_scratch(
        [sys.executable, "-m", "pip", "install", *options, source], cwd=tmp_path
    ).require_success()
    environment = {"PYTHONPATH": str(target)}
    for words in (["--help"], ["train", "--help"], ["quickstart", "--help"]):
        result = run_from_scratch(
            [sys.executable, target / "bin" / "ringdet", *words],
            cwd=tmp_path,
            environment=environment,
        ).require_success()
    assert "--generate" in result.output
    code = "import families, ringdet; families.load('maskrcnn-r50-fpn'); print(ringdet.__file__)"
    result = run_from_scratch(
        [sys.executable, "-c", code], cwd=tmp_path, environment=environment
    ).require_success()
    assert result.output.strip() == str(target / "ringdet" / "__init__.py")
