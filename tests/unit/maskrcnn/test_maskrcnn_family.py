"""Mask R-CNN as train.py and eval.py see it: conventions, checks, files of an evaluation."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from mask_records import OBJECTS, mask_record, tiny_config, write_set
from pycocotools import mask as mask_api

import families
from engine.config.fields import ConfigError, to_dict
from engine.files.weight_files import WeightFile
from engine.task import MaskedRows, Shard
from maskrcnn import family
from maskrcnn.config import OUR_CONVENTIONS, Conventions, conventions_of
from maskrcnn.family import FAMILY
from maskrcnn.settings import base_config
from maskrcnn.task import MaskRcnnTask
from maskrcnn.weights.foreign_names import TORCHVISION
from maskrcnn.weights.weights import WeightSource
from object_detection.masks.rows import pack_mask
from object_detection.metrics.coco import METRIC_NAMES, CocoEvaluator
from object_detection.records.class_map import ClassMap, make_class_map

MSRA = Conventions("symmetric", "1x1", (122.8, 115.9, 103.0), (1.0, 1.0, 1.0))


# ------------------------------------------------------------------------------ conventions


DETECTOR = Conventions(*MSRA[:4], "detectron", 1.0, 1.0, "legacy", "bilinear")


def known(config, description=None):
    return conventions_of(FAMILY.settled_config(config, description or {}).model)


@pytest.fixture
def msra_file(monkeypatch):
    """Any weight file is a detector on one of MSRA's ResNets."""
    source = SimpleNamespace(conventions=DETECTOR)
    monkeypatch.setattr(family.weights, "read_source", lambda path: source)
    return tiny_config(train__backbone_init="R-50.pkl")


def test_conventions_are_ours_without_weights():
    assert known(tiny_config()) == OUR_CONVENTIONS


def test_weights_decide_the_conventions(msra_file):
    assert known(msra_file) == Conventions(*MSRA[:4], *OUR_CONVENTIONS[4:])


@pytest.mark.parametrize("backbone", ["", "R-50.pkl", "model_final.pkl"])
def test_a_detector_also_decides_anchors_and_box_coding(msra_file, backbone):
    config = tiny_config(train__backbone_init=backbone, train__pretrained_ckpt="model_final.pkl")
    assert known(config) == DETECTOR


def test_weights_of_another_convention_than_asked_for_are_refused(msra_file):
    config = tiny_config(train__backbone_init="R-50.pkl", model__stride_in="3x3")
    with pytest.raises(ConfigError, match=r"stride_in.*R-50\.pkl was trained with '1x1'"):
        known(config)


def test_a_checkpoint_keeps_its_conventions(msra_file):
    of_model = {f"model__{name}": value for name, value in DETECTOR._asdict().items()}
    stored = {"config": to_dict(tiny_config(**of_model))}
    assert known(msra_file, stored) == DETECTOR


# ------------------------------------------------------------------------------ data


def test_masks_as_png_are_decoded_and_the_remedy_is_said(tmp_path, caplog):
    found = {}
    for mask_format in ("bitpacked", "png"):
        folder = tmp_path / mask_format
        folder.mkdir()
        record = mask_record(0, objects=OBJECTS, mask_format=mask_format)
        pattern, card = write_set(folder, [record])
        assert card.mask_format == mask_format
        config = tiny_config(
            data__training_file_pattern=pattern,
            model__canvases=[[64, 96]],
            data__input_rand_hflip=False,
            train__batch_size=1,
        )
        FAMILY.check_training_data(config, card)
        class_map = make_class_map(card, class_ids="contiguous", num_classes=None)
        task = MaskRcnnTask(config, class_map, train_card=card, seed=1)
        batches = task.train_dataset(shard=Shard(0, 1), start_step=0)
        found[mask_format] = next(iter(batches))["masks"].numpy()
    assert found["png"][0, :2].any(axis=-1).all()
    np.testing.assert_array_equal(found["png"], found["bitpacked"])
    (warning,) = (record.message for record in caplog.records if "PNG" in record.message)
    assert "--include_masks" in warning


def test_records_without_masks_are_refused_before_a_model_is_built(tmp_path):
    pattern, _ = write_set(tmp_path, [mask_record(0, with_masks=False)])
    config = tiny_config(data__training_file_pattern=pattern)
    with pytest.raises(ConfigError, match=r"holds no masks.*--include_masks.*fasterrcnn"):
        FAMILY.make_task(config, description={}, training=True, batch_norm=None, seed=0)


# ------------------------------------------------------------------------------ results

CATEGORIES = {0: (3, "red"), 1: (8, "blue")}


def fake_task(*, has_masks, testdev_dir=""):
    config = tiny_config(eval__testdev_dir=testdev_dir, eval__report=False)
    names = SimpleNamespace(image_ids=[11, 12], categories=CATEGORIES)
    to_detections = functools.partial(CocoEvaluator.to_detections, names)
    return SimpleNamespace(
        config=config, has_masks=has_masks, evaluator=SimpleNamespace(to_detections=to_detections)
    )


def metrics(prefix="", value=0.5):
    names = (*METRIC_NAMES, "AP_/red")
    return {f"{prefix}{name}": value for name in names}


def masked_rows():
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[2:10, 3:20] = 1
    rows = np.array([[1.0, 3.25, 2.0, 17.0, 8.0, 0.75, 1.0]])
    return MaskedRows(rows, [pack_mask(mask_api.encode(mask))]), mask


def test_an_evaluation_leaves_boxes_masks_and_metrics(tmp_path):
    found, mask = masked_rows()
    both = metrics(value=0.25) | metrics("mask_", 0.125)
    task = fake_task(has_masks=True, testdev_dir=str(tmp_path / "testdev"))
    lines = FAMILY.write_evaluation(task, found, both, folder=tmp_path / "out", epoch=7)

    def read(name):
        return json.loads((tmp_path / "out" / name).read_text())

    box = {"image_id": 12, "category_id": 8, "bbox": [3.25, 2.0, 17.0, 8.0], "score": 0.75}
    assert read("bbox.json") == [box]
    (segm,) = read("segm.json")
    assert set(segm) == {"image_id", "category_id", "score", "segmentation"}
    np.testing.assert_array_equal(mask_api.decode(segm["segmentation"]), mask)
    assert read("detections.json") == [box | segm]
    assert read("metrics.json") == {"epoch": 7, "max_detections": 100, **both}
    text = "\n".join(lines)
    assert "epoch 7, boxes" in text and "epoch 7, masks" in text
    assert "7,25.00,25.00" in text and "7,12.50,12.50" in text
    assert list((tmp_path / "testdev").iterdir())


def test_without_masks_there_is_no_mask_file(tmp_path):
    rows = masked_rows()[0].rows
    lines = FAMILY.write_evaluation(
        fake_task(has_masks=False), rows, metrics(), folder=tmp_path, epoch=1
    )
    names = {"bbox.json", "detections.json", "metrics.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert not any("mask_" in line for line in lines)


def test_a_test_split_has_files_but_no_table(tmp_path):
    found, _ = masked_rows()
    lines = FAMILY.write_evaluation(fake_task(has_masks=True), found, {}, folder=tmp_path, epoch=1)
    assert lines == [f"detections and metrics are in {tmp_path}"]


# ------------------------------------------------------------------------------ names


def test_coco_channels_of_torchvision_are_category_ids_less_one():
    coco = ClassMap(2, {0: (1, "person"), 1: (90, "toothbrush")})
    assert coco.coco_channels() == [0, 89]
    assert ClassMap(1, {0: (1, "nucleus")}).coco_channels() is None


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("efficientdet-d3", "efficientdet"),
        ("maskrcnn-r101-fpn", "maskrcnn"),
        ("fasterrcnn-r50-c4", "maskrcnn"),
        ("rpn-r50-fpn", "maskrcnn"),
    ],
)
def test_a_model_name_tells_its_family(name, package):
    assert families.package_of(name) == package
    assert families.base_config(name).model.name == name
    assert type(families.load(name)).__module__ == f"{package}.family"


def test_an_unknown_model_is_told_its_nearest():
    with pytest.raises(ConfigError, match="did you mean 'maskrcnn-r50-fpn'"):
        families.package_of("maskrcnn-r50fpn")


def test_presets_are_those_of_the_family():
    ours = base_config("maskrcnn-r50-fpn")
    assert families.with_preset(ours, "nvidia_tf2").model.padding == "same"
    d0 = families.base_config("efficientdet-d0")
    assert families.with_preset(d0, "nvidia").data.num_classes == 91
    with pytest.raises(ConfigError, match="nvidia_tf2"):
        families.with_preset(ours, "nvidia")


def test_a_preset_that_a_checkpoint_overrules_is_told():
    trained = families.with_preset(base_config("maskrcnn-r50-fpn"), "nvidia_pytorch")
    stored = {"config": json.loads(json.dumps(to_dict(trained)))}
    for description, name in ((stored, "nvidia_pytorch"), (stored, ""), ({}, "nvidia_tf2")):
        assert FAMILY.overruled(description, preset_name=name) == []
    (warning,) = FAMILY.overruled(stored, preset_name="nvidia_tf2")
    assert warning.startswith("--preset=nvidia_tf2 has no effect")
    assert "model.padding symmetric and not same, model.roi_align_convention legacy" in warning
    with pytest.raises(ConfigError, match="did you mean 'nvidia_tf2'"):
        FAMILY.overruled(stored, preset_name="nvidia_tf")


def test_a_stored_configuration_is_rebuilt():
    stored = {"config": json.loads(json.dumps(to_dict(base_config("maskrcnn-r50-c4"))))}
    config = FAMILY.config_of_description(
        stored, model_name="", preset_name="", hparams="test_nms=0.4", batch_size=3
    )
    assert config.model == base_config("maskrcnn-r50-c4").model
    assert config.test.test_nms == 0.4 and config.eval.eval_batch_size == 3


def test_pretrained_weights_fill_the_predictors_by_class_name(tmp_path, monkeypatch):
    of_file = ClassMap(3, {0: (1, "blue"), 1: (2, "red"), 2: (5, "green")})
    (tmp_path / "ckpt.json").write_text(json.dumps({"task": {"class_map": of_file.to_dict()}}))
    asked = []

    def load(model, source, *, channels):
        asked.append(channels)
        return SimpleNamespace(format_table=lambda: "table", missing={})

    monkeypatch.setattr(family.weights, "load_detector", load)
    monkeypatch.setattr(family.weights, "read_source", lambda path: SimpleNamespace(layout="ours"))
    ours = ClassMap(2, {0: (1, "red"), 1: (2, "black")})  # the file's ids are other colours
    config = tiny_config(train__pretrained_ckpt=str(tmp_path / "ckpt"))
    task = SimpleNamespace(class_map=ours, model=None, config=config)
    lines = FAMILY.load_initial_weights(config, task)
    assert asked == [[1, -1]]
    assert "1 of 2 classes are the file's by name: red; kept as initialised: black" in lines[-1]


@pytest.mark.parametrize(("outputs", "channels"), [(91, [2]), (2, None)])
def test_classes_of_torchvision_are_cocos_ids_if_there_are_as_many(monkeypatch, outputs, channels):
    arrays = {"roi_heads.box_predictor.cls_score.bias": np.zeros(outputs)}
    source = WeightSource(WeightFile("m.pth", "torch", arrays), TORCHVISION, None)
    monkeypatch.setattr(family.weights, "read_source", lambda path: source)
    monkeypatch.setattr(family.weights, "load_detector", lambda *_, channels: channels)
    task = SimpleNamespace(class_map=ClassMap(1, {0: (3, "car")}), model=None)
    assert FAMILY.load_detector(task, "m.pth") == channels
