"""Loading: files of each program give that program's outputs; conventions, classes, refusals."""

import dataclasses
import functools
import json

import foreign_weights as foreign
import matterport_in_numpy as matterport
import numpy as np
import pytest
import tensorflow as tf
from weight_samples import assert_holds, assert_refused, random_values, save_tensors, values_of

from engine.files import checkpoint, weight_files
from maskrcnn.config import (
    IMAGENET_MEAN_RGB,
    OUR_CONVENTIONS,
    Conventions,
    model_config,
    with_conventions,
)
from maskrcnn.network.anchors import model_anchors
from maskrcnn.network.model import build_model
from maskrcnn.weights.weight_names import anchor_order, layout_of
from maskrcnn.weights.weights import WeightSource, load_backbone, load_detector, read_source

MSRA = Conventions("symmetric", "1x1", (122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0))
DETECTRON = Conventions(*MSRA[:4], "detectron", 1.0, 1.0, "legacy", "bilinear")
BENCHMARK = DETECTRON._replace(resampling="antialiased")
DETECTRON2 = Conventions(
    *("symmetric", "1x1", IMAGENET_MEAN_RGB, (1.0, 1.0, 1.0)),
    *("detectron2", 0.0, 0.0, "aligned", "antialiased"),
)
MMDETECTION = Conventions(*OUR_CONVENTIONS[:4], "detectron2", 0.0, 0.0, "aligned", "bilinear")
TORCHVISION = Conventions(*OUR_CONVENTIONS[:4], "torchvision", 0.0, 0.0, "legacy", "bilinear")
SHAPES, DEEPER = (
    foreign.detector_shapes(repeats=(first, 1, 1, 1), classes=4, filters=8, hidden=6)
    for first in (1, 2)
)


def small(name="maskrcnn-r50-fpn", **changes):
    """A narrow model of one block per stage."""
    changes = {
        "backbone_repeats": (1, 1, 1, 1),
        "fpn_num_filters": 8,
        "box_mlp_dim": 6,
        "mask_conv_dims": (8,) * 4,
        "mask_deconv_dim": 8,
    } | changes
    return dataclasses.replace(model_config(name), **changes)


def small_model(*, num_classes=3, conventions=TORCHVISION, **changes):
    config = with_conventions(small(**changes), conventions, source="test")
    return build_model(config, num_classes=num_classes)


@functools.cache
def model_for(conventions=TORCHVISION):
    """A small model of these conventions, whose values the tests overwrite."""
    return small_model(conventions=conventions)


@pytest.fixture(scope="module")
def values():
    return foreign.random_values(SHAPES)


def folded(values):
    """The same with batch norm folded into scale and shift."""
    constants = {"running_mean": 0.0, "running_var": 1.0}
    return {
        name: np.full_like(value, constants.get(name.rpartition(".")[2], value))
        for name, value in values.items()
    }


def assert_near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def assert_computes(model, network, *, order=None):
    """Compares all parts of a model with those of another program on the same inputs."""
    rng = np.random.default_rng(5)
    images = rng.normal(size=(1, 32, 64, 3)).astype(np.float32)
    maps, outputs = network.pyramid(images), model(images)
    for level, expected in maps.items():
        assert_near(outputs.features[level], expected)
    logits, deltas = network.rpn(maps[2])
    order = anchor_order(model.config) if order is None else order
    assert_near(outputs.rpn_logits[0], logits[..., order])
    own = outputs.rpn_deltas[0].numpy().reshape(deltas.shape)
    assert_near(own, deltas[..., order, :])
    rois = rng.normal(size=(2, 7, 7, 8)).astype(np.float32)
    (logits, deltas), boxes = network.boxes(rois), model.boxes(rois)
    assert_near(boxes.class_logits, logits[:, [1, 2, 3, 0]])
    assert_near(boxes.box_deltas, deltas[:, 1:])
    rois = rng.normal(size=(2, 14, 14, 8)).astype(np.float32)
    assert_near(model.masks(rois), network.masks(rois)[..., 1:])


def torch(rename=dict, wrapped_in=None):
    return lambda path, values: foreign.write_torch(path, rename(values), wrapped_in=wrapped_in)


def in_lightning(values):
    """Names as a training program has them whose network is its part `model`."""
    return {f"model.{name}": value for name, value in values.items()}


class TestOutputsOfOtherPrograms:
    @pytest.mark.parametrize(
        ("layout", "write", "conventions", "epsilon"),
        [
            ("torchvision", torch(), TORCHVISION, 0.0),
            ("torchvision", torch(in_lightning, "state_dict"), TORCHVISION, 0.0),
            ("torchvision", torch(foreign.to_old_torchvision, "model"), TORCHVISION, 0.0),
            ("benchmark", torch(foreign.to_benchmark), BENCHMARK, 0.0),
            ("detectron", foreign.write_detectron, DETECTRON, 0.0),
            ("detectron2", foreign.write_detectron2, DETECTRON2, 1e-5),
            ("mmdetection", torch(foreign.to_mmdetection, "state_dict"), MMDETECTION, 1e-5),
        ],
    )  # fmt: skip
    def test_a_detector(self, values, tmp_path, layout, write, conventions, epsilon):
        values = folded(values) if layout == "detectron" else values
        write(tmp_path / "model", values)
        source = read_source(tmp_path / "model")
        assert (source.layout, source.conventions) == (layout, conventions)
        model = model_for(conventions)
        report = load_detector(model, source)
        assert not report.missing and len(report.loaded) == len(model.variables)
        is_caffe2 = conventions.stride_in == "1x1"
        network = foreign.ForeignNetwork(values, caffe2=is_caffe2, epsilon=epsilon)
        assert_computes(model, network)

    def test_torchvisions_second_version(self, tmp_path):
        values = foreign.random_values(foreign.second_version(SHAPES))
        counter = {"roi_heads.mask_head.0.1.num_batches_tracked": np.zeros(1, np.float32)}
        source = read_source(foreign.write_torch(tmp_path / "v2.pth", values | counter))
        assert (source.layout, source.conventions) == ("torchvision", TORCHVISION)
        model = small_model(name="maskrcnn-r50-fpn-v2", box_conv_dim=8)
        assert not load_detector(model, source).missing
        assert_computes(model, foreign.ForeignNetwork(values, caffe2=False, epsilon=1e-5))
        with pytest.raises(ValueError, match="of --model_name=maskrcnn-r50-fpn-v2 or fasterrcnn-"):
            load_detector(model_for(), source)

    def test_torchvisions_first_version_with_batch_norm_that_was_trained(self, values, tmp_path):
        """A network made without weights; a tiny variance makes the epsilon matter."""
        values = {**values, "backbone.body.bn1.running_var": np.full(64, 1e-4, np.float32)}
        counter = {"backbone.body.bn1.num_batches_tracked": np.zeros(1, np.float32)}
        path = foreign.write_torch(tmp_path / "v1.pth", values | counter)
        model = model_for()
        assert not load_detector(model, path).missing
        assert_computes(model, foreign.ForeignNetwork(values, caffe2=False, epsilon=1e-5))

    def test_matterport(self, tmp_path):
        weights = matterport.random_weights(width=8, filters=8, hidden=6, classes=4)
        source = read_source(matterport.write_keras_h5(tmp_path / "mask_rcnn_coco.h5", weights))
        assert (source.layout, source.file.kind) == ("matterport", weight_files.KERAS_H5)
        assert source.conventions == Conventions(
            *("same_pool", "1x1", (123.7, 116.8, 103.9), (1.0, 1.0, 1.0)),
            *("detectron2", -1.0, -1.0, "corners", "bilinear"),
        )
        model = small_model(
            name="maskrcnn-r50-fpn-matterport",
            conventions=source.conventions,
            rpn_conv_dim=16,
            backbone_width=8,
        )
        report = load_detector(model, source)
        assert not report.missing and not report.skipped
        anchors = matterport.pyramid_anchors((8, 16), 4, 32)
        ours = model_anchors(model.config, (32, 64))[: len(anchors)]
        order = [int(np.argmin(np.abs(anchors[:3] - a).sum(axis=1))) for a in ours[:3]]
        assert sorted(order) == [0, 1, 2]
        np.testing.assert_allclose(ours, anchors.reshape(-1, 3, 4)[:, order].reshape(-1, 4))
        assert_computes(model, matterport.Matterport(weights), order=order)
        with pytest.raises(ValueError, match=r"model\.padding='symmetric', but .*mask_rcnn_coco"):
            load_detector(model_for(), source)

    def test_anchors_in_the_order_of_the_tf2_reference(self, values, tmp_path):
        aspects = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
        model = small_model(aspect_ratios=aspects)
        assert anchor_order(model.config) == [1, 0, 2]
        load_detector(model, foreign.write_torch(tmp_path / "m.pth", values))
        assert_computes(model, foreign.ForeignNetwork(values, caffe2=False, epsilon=0.0))

    def test_backbone_epsilon_of_torchvision(self, values, tmp_path):
        """A classifier's file; a tiny variance makes the epsilon matter."""
        body = {n.removeprefix("backbone.body."): v for n, v in values.items() if ".body." in n}
        body["bn1.running_var"] = np.full(64, 1e-4, np.float32)
        body |= {"fc.weight": np.zeros([10, 2048], np.float32), "fc.bias": np.zeros(10, np.float32)}
        path = foreign.write_torch(tmp_path / "resnet50.pth", body)
        model = model_for()
        report = load_backbone(model, path)
        assert report.skipped == {
            n: "not a variable of this network" for n in ("fc.weight", "fc.bias")
        }
        assert {name.split("/")[0] for name in report.loaded} == {"backbone"}
        full = values | {f"backbone.body.{name}": value for name, value in body.items()}
        network = foreign.ForeignNetwork(full, caffe2=False, epsilon=1e-5)
        images = np.random.default_rng(5).normal(size=(1, 32, 32, 3)).astype(np.float32)
        layer = model.trunk.get_layer("backbone/layer4/0")
        features = tf.keras.Model(model.trunk.input, layer.output)(images)
        expected = network.body(images)[5]
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5 * expected.max())


class TestPublishedShapes:
    def test_torchvision_detector(self):
        shapes = foreign.detector_shapes(repeats=(3, 4, 6, 3), classes=91)
        elements = sum(int(np.prod(s)) for n, s in shapes.items() if len(s) > 1 or "bias" in n)
        norms = {n for n in shapes if ".bn" in n or "downsample.1" in n}
        elements -= sum(int(np.prod(shapes[n])) for n in norms if "bias" in n)
        assert elements == 44401393  # torchvision's own count
        second = foreign.second_version(shapes)
        trained = [s for n, s in second.items() if "running" not in n]
        assert sum(int(np.prod(s)) for s in trained) == 46359409  # and of its second version
        arrays = {n: np.broadcast_to(np.float32(0.5), s) for n, s in shapes.items()}
        file = weight_files.WeightFile("state_dict.pth", weight_files.TORCH, arrays, "the average")
        source = WeightSource(file, layout_of(arrays), OUR_CONVENTIONS)
        report = load_detector(
            build_model(model_config("maskrcnn-r50-fpn"), num_classes=90), source
        )
        assert len(report.loaded) == len(arrays) == 307 and not report.missing
        assert "  the average\n" in report.format_table()

    def test_ngc_checkpoint(self, tmp_path):
        """All 265 tensors, through a checkpoint; stage 5 goes where a c4 body has it."""
        shapes = foreign.detector_shapes(repeats=(3, 4, 6, 3), classes=2)
        shapes = {name: shape for name, shape in shapes.items() if ".body." in name}
        values = foreign.random_values(shapes)
        variables = foreign.to_ngc(values)
        assert len(variables) == 265
        others = {
            "resnet50/output/conv2d/kernel": np.zeros([1, 1, 2048, 10], np.float32),
            "resnet50/conv2d/conv2d/kernel/Momentum": np.zeros([7, 7, 3, 64], np.float32),
            "global_step": np.int64(1),
        }
        prefix = save_tensors(tmp_path / "nvidia_rn50_tf_amp", variables | others)
        source = read_source(prefix)
        assert source.conventions[:2] == ("same", "3x3")
        config = small("fasterrcnn-r50-c4", backbone_repeats=(), box_resolution=2)
        model = build_model(
            with_conventions(config, source.conventions, source=prefix), num_classes=1
        )
        report = load_backbone(model, source)
        assert len(report.loaded) == 265 and not report.missing
        assert set(report.skipped) == set(others)
        loaded = values_of(model)
        for name, theirs in (
            ("backbone/conv1/kernel", "conv1.weight"),
            ("backbone/layer3/5/conv2/kernel", "layer3.5.conv2.weight"),
            ("box_head/layer4/0/downsample_conv/kernel", "layer4.0.downsample.0.weight"),
        ):
            expected = values[f"backbone.body.{theirs}"].transpose(2, 3, 1, 0)
            np.testing.assert_array_equal(loaded[name], expected)
        for name, theirs in (
            ("backbone/bn1/gamma", "bn1.weight"),
            ("box_head/layer4/2/bn3/moving_variance", "layer4.2.bn3.running_var"),
        ):
            np.testing.assert_array_equal(loaded[name], values[f"backbone.body.{theirs}"])
        del variables["resnet50/btlnck_block_2_5/bottleneck_2/conv2d/kernel"]
        path = save_tensors(tmp_path / "partial", variables)
        match = r"264 of 265.*layer3/5/conv2/kernel is not in"
        assert_refused(load_backbone, model, path, match)


class TestDetectronBackbones:
    def blobs(self, *, norm="bn", width=64, groups=1):
        blobs = {"conv1_w": np.ones([64, 3, 7, 7]), "pred_w": np.ones([9, 9])}
        blobs["conv1_w_momentum"] = blobs["conv1_w"]
        stem = "res_conv1_bn" if norm == "bn" else "conv1_gn"
        blobs |= {f"{stem}_{v}": np.ones(64) for v in "sb"}
        channels = 64
        for stage in range(4):
            mid, out = width << stage, 256 << stage
            name = f"res{stage + 2}_0_branch"
            for branch, shape in (
                ("2a", (mid, channels, 1, 1)),
                ("2b", (mid, mid // groups, 3, 3)),
                ("2c", (out, mid, 1, 1)),
                ("1", (out, channels, 1, 1)),
            ):
                blobs[f"{name}{branch}_w"] = np.ones(shape)
                blobs |= {f"{name}{branch}_{norm}_{v}": np.ones(shape[0]) for v in "sb"}
            channels = out
        return {name: value.astype(np.float32) for name, value in blobs.items()}

    @pytest.mark.parametrize(
        ("model_name", "options", "stride_in"),
        [
            ("rpn-r50-c5", {}, "1x1"),
            ("rpn-r50-fpn-gn", {"norm": "gn"}, "3x3"),
            ("rpn-x101-32x8d-fpn", {"width": 256, "groups": 32}, "3x3"),
        ],
    )
    def test_each_kind(self, tmp_path, model_name, options, stride_in):
        path = foreign.write_blobs(tmp_path / "R.pkl", self.blobs(**options))
        source = read_source(path)
        assert source.conventions == MSRA._replace(stride_in=stride_in)
        config = with_conventions(
            small(model_name, num_norm_groups=2), source.conventions, source="R"
        )
        report = load_backbone(build_model(config, num_classes=1), source)
        assert not report.missing and report.skipped["pred_w"] == "not a variable of this network"
        assert report.skipped["conv1_w_momentum"] == "training state"

    def test_group_norm_does_not_fit_batch_norm(self, tmp_path):
        path = foreign.write_blobs(tmp_path / "R-50-GN.pkl", self.blobs(norm="gn"))
        model = small_model(conventions=MSRA._replace(stride_in="3x3"))
        with pytest.raises(ValueError, match=r"another network.*backbone/bn1/gamma is not in"):
            load_backbone(model, path)


class TestClassCounts:
    def load(self, values, tmp_path, **kwargs):
        model = small_model(num_classes=2)
        before = values_of(model)
        path = foreign.write_torch(tmp_path / "m.pth", values)
        return model, before, load_detector(model, path, **kwargs)

    def test_only_the_predictors_are_dropped(self, values, tmp_path):
        model, before, report = self.load(values, tmp_path)
        assert set(report.missing) == {
            f"{layer}/{kind}"
            for layer in ("box_head/cls_score", "box_head/bbox_pred", "mask_head/mask_fcn_logits")
            for kind in ("kernel", "bias")
        }
        assert set(report.missing.values()) == {"2 classes here, 3 in the file"}
        after = values_of(model)
        np.testing.assert_array_equal(after["box_head/cls_score/bias"], 0.0)
        assert np.any(after["box_head/fc7/kernel"] != before["box_head/fc7/kernel"])
        assert "kept as initialised: 6" in report.format_table()

    def test_classes_are_picked(self, values, tmp_path):
        model, _, report = self.load(values, tmp_path, channels=[2, 0])
        assert not report.missing
        ours = values_of(model)
        picks = [3, 1]  # torchvision's background is class 0
        scores = values["roi_heads.box_predictor.cls_score.bias"]
        np.testing.assert_array_equal(ours["box_head/cls_score/bias"], scores[[*picks, 0]])
        deltas = values["roi_heads.box_predictor.bbox_pred.weight"].reshape(4, 4, 6)
        expected = deltas[picks][:, [1, 0, 3, 2]].reshape(8, 6).T
        np.testing.assert_array_equal(ours["box_head/bbox_pred/kernel"], expected)
        masks = values["roi_heads.mask_predictor.mask_fcn_logits.bias"]
        np.testing.assert_array_equal(ours["mask_head/mask_fcn_logits/bias"], masks[picks])

    @pytest.mark.parametrize("channels", [[0], [0, 3], [-2, 0]])
    def test_wrong_channels(self, values, tmp_path, channels):
        with pytest.raises(ValueError, match="channels"):
            self.load(values, tmp_path, channels=channels)


class TestOurCheckpoints:
    def test_averages_and_conventions(self, tmp_path):
        model = model_for(DETECTRON)
        raw, averaged = (random_values(model, seed) for seed in (1, 2))
        tensors = {f"model/{name}": tf.constant(value) for name, value in raw.items()}
        tensors |= {f"ema/{name}": tf.constant(value) for name, value in averaged.items()}
        tensors |= {"momentum": tf.zeros([4]), "state/step": tf.constant(3)}
        description = {"config": {"model": dataclasses.asdict(model.config)}}
        prefix = checkpoint.save(tmp_path / "ckpt-1", tensors, description)
        source = read_source(prefix)
        assert source.conventions == DETECTRON
        report = load_detector(model, source)
        assert report.num_averaged == len(report.loaded) == len(averaged)
        assert f", {len(averaged)} averaged values)" in report.format_table()
        assert report.skipped["state/step"] == "training state"
        assert_holds(model, averaged)
        with pytest.raises(ValueError, match=r"stride_in='3x3', but .*ckpt-1"):
            load_detector(model_for(), prefix)

    def test_without_description_nothing_is_demanded(self, tmp_path):
        expected = random_values(model_for(), 3)
        prefix = save_tensors(tmp_path / "weights", expected)
        assert read_source(prefix).conventions is None
        assert not load_detector(model_for(), prefix).missing
        (tmp_path / "weights.json").write_text(json.dumps({"config": {"model": {}}}))
        assert read_source(prefix).conventions is None


class TestRefusals:
    def test_other_conventions_than_the_models(self, values, tmp_path):
        path = foreign.write_detectron(tmp_path / "R-50.pkl", folded(values))
        match = r"model\.stride_in='3x3', but .*R-50\.pkl.*'1x1'"
        assert_refused(load_backbone, model_for(), path, match)

    def test_nothing_matches(self, tmp_path):
        path = save_tensors(tmp_path / "ckpt", {"stem_conv2d/kernel": np.zeros([7, 7])})
        match = r"none of its 1 arrays fits.*found.*stem_conv2d"
        assert_refused(load_detector, model_for(), path, match)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda _: foreign.random_values(DEEPER),
             r"another network.*layer1\.1\.conv1\.weight has no place.*made with\.$"),
            (lambda v: {n: x for n, x in v.items() if "mask" not in n},
             r"mask_head/mask_fcn1/kernel is not in the file.* Its backbone fits: --backbone_init"),
            (lambda v: v | {"rpn.head.cls_logits.bias": np.full(3, np.nan, np.float32)},
             "rpn.head.cls_logits.bias holds non-finite"),
        ],
        ids=["deeper", "missing part", "not finite"],
    )  # fmt: skip
    def test_values_that_do_not_fit(self, values, tmp_path, change, match):
        path = foreign.write_torch(tmp_path / "m.pth", change(values))
        assert_refused(load_detector, model_for(), path, match)


def test_report_is_a_table(values, tmp_path):
    path = foreign.write_detectron(tmp_path / "R-50.pkl", folded(values))
    table = load_backbone(model_for(DETECTRON), path).format_table()
    assert "R-50.pkl (numpy_pickle)\n  layout detectron" in table
    assert "padding symmetric, stride in 1x1, mean 122.8 115.9 103, deviation 1 1 1" in table
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.strip()}
    assert rows["backbone"] == ["85", "0"]
    assert "not part of the backbone" in table
