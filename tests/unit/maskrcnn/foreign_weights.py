"""State dicts of other programs, files of them, and what those programs compute from them.

One set of values is written under the names of each program, in their layout.
"""

import pickle
import re

import network_in_numpy as reference
import numpy as np
from weight_pickles import array, dictionary, state_dict, text, whole, write_torch_zip


def detector_shapes(*, repeats, classes, filters=256, hidden=1024):
    """Names and shapes of torchvision's maskrcnn_resnet50_fpn; classes include the background."""
    shapes = {"backbone.body.conv1.weight": (64, 3, 7, 7)}

    def norm(name, channels):
        for variable in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{variable}"] = (channels,)

    def layer(name, *shape):
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    norm("backbone.body.bn1", 64)
    channels = 64
    for stage, count in enumerate(repeats):
        mid = 64 << stage
        for block in range(count):
            name = f"backbone.body.layer{stage + 1}.{block}"
            for index, shape in enumerate(
                ((mid, channels, 1, 1), (mid, mid, 3, 3), (4 * mid, mid, 1, 1)), start=1
            ):
                shapes[f"{name}.conv{index}.weight"] = shape
                norm(f"{name}.bn{index}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * mid, channels, 1, 1)
                norm(f"{name}.downsample.1", 4 * mid)
            channels = 4 * mid
    for index in range(4):
        layer(f"backbone.fpn.inner_blocks.{index}.0", filters, 256 << index, 1, 1)
        layer(f"backbone.fpn.layer_blocks.{index}.0", filters, filters, 3, 3)
    layer("rpn.head.conv.0.0", filters, filters, 3, 3)
    layer("rpn.head.cls_logits", 3, filters, 1, 1)
    layer("rpn.head.bbox_pred", 12, filters, 1, 1)
    layer("roi_heads.box_head.fc6", hidden, filters * 49)
    layer("roi_heads.box_head.fc7", hidden, hidden)
    layer("roi_heads.box_predictor.cls_score", classes, hidden)
    layer("roi_heads.box_predictor.bbox_pred", 4 * classes, hidden)
    for index in range(4):
        layer(f"roi_heads.mask_head.{index}.0", filters, filters, 3, 3)
    layer("roi_heads.mask_predictor.conv5_mask", filters, filters, 2, 2)
    layer("roi_heads.mask_predictor.mask_fcn_logits", classes, filters, 1, 1)
    return shapes


def second_version(shapes):
    """Names and shapes of torchvision's maskrcnn_resnet50_fpn_v2, from those of the first."""
    changed = {}

    def convolution(name, shape):
        changed[f"{name}.0.weight"] = shape
        for variable in ("weight", "bias", "running_mean", "running_var"):
            changed[f"{name}.1.{variable}"] = shape[:1]

    for name, shape in shapes.items():
        layer, _, variable = name.rpartition(".")
        if re.search(r"fpn\.\w+_blocks|mask_head", name):
            if variable == "weight":
                convolution(layer.removesuffix(".0"), shape)
        elif "box_head.fc6" in name:
            filters = shapes["rpn.head.conv.0.0.bias"][0]
            if variable == "weight":
                for index in range(4):
                    convolution(f"roi_heads.box_head.{index}", (filters, filters, 3, 3))
            changed[f"roi_heads.box_head.5.{variable}"] = shape
        elif "box_head.fc7" not in name:
            changed[name] = shape
        if "rpn.head.conv.0.0" in name:
            changed[name.replace("conv.0", "conv.1")] = shape
    return changed


def random_values(shapes):
    rng = np.random.default_rng(0)
    values = {}
    for name, shape in shapes.items():
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            value = rng.normal(0.0, 1.0 / np.sqrt(np.prod(shape[1:])), shape)
        else:
            value = rng.normal(0.0, 0.2, shape)
        values[name] = value.astype(np.float32)
    return values


# --- names of the other programs ------------------------------------------------------------------


def _renamed(values, rules):
    result = {}
    for name, value in values.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        result[name] = value
    return result


def to_old_torchvision(values):
    """Names of the files that torchvision published."""
    return _renamed(
        values,
        [
            (r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2."),
            (r"rpn\.head\.conv\.0\.0", "rpn.head.conv"),
            (r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}"),
        ],
    )


def to_benchmark(values):
    """Names of maskrcnn-benchmark, as saved from several GPUs."""
    values = _renamed(
        values,
        [
            (r"^backbone\.body\.(conv1|bn1)", r"backbone.body.stem.\1"),
            (r"fpn\.(\w+)_blocks\.(\d)\.0", lambda m: f"fpn.fpn_{m[1]}{int(m[2]) + 1}"),
            (r"rpn\.head\.conv\.0\.0", "rpn.head.conv"),
            (r"roi_heads\.box_head", "roi_heads.box.feature_extractor"),
            (r"roi_heads\.(box|mask)_predictor", r"roi_heads.\1.predictor"),
            (
                r"roi_heads\.mask_head\.(\d)\.0",
                lambda m: f"roi_heads.mask.feature_extractor.mask_fcn{int(m[1]) + 1}",
            ),
        ],
    )
    return {f"module.{name}": value for name, value in values.items()}


def to_detectron(values):
    """Blobs of Caffe2; values must have mean 0 and variance 1."""
    blobs = {}
    for name, value in values.items():
        if name.endswith(("running_mean", "running_var")):
            continue
        layer, _, variable = name.rpartition(".")
        is_norm = re.search(r"(bn\d|downsample\.1)$", layer)
        suffix = {"weight": "s" if is_norm else "w", "bias": "b"}[variable]
        blobs[f"{_blob_of(layer)}_{suffix}"] = value
    return blobs


def to_detectron2(values):
    stem, body = "backbone.bottom_up.stem.conv1", r"^backbone\.body\.layer(\d)\.(\d+)\."

    def place(match):
        return f"backbone.bottom_up.res{int(match[1]) + 1}.{match[2]}."

    return _renamed(
        _background_last(values),
        [
            (r"^backbone\.body\.conv1", stem),
            (r"^backbone\.body\.bn1", f"{stem}.norm"),
            (rf"{body}bn(\d)", lambda m: f"{place(m)}conv{m[3]}.norm"),
            (rf"{body}downsample\.0", lambda m: f"{place(m)}shortcut"),
            (rf"{body}downsample\.1", lambda m: f"{place(m)}shortcut.norm"),
            (body, place),
            (r"fpn\.inner_blocks\.(\d)\.0", lambda m: f"fpn_lateral{int(m[1]) + 2}"),
            (r"fpn\.layer_blocks\.(\d)\.0", lambda m: f"fpn_output{int(m[1]) + 2}"),
            (r"^rpn\.head\.conv\.0\.0", "proposal_generator.rpn_head.conv"),
            (r"^rpn\.head\.cls_logits", "proposal_generator.rpn_head.objectness_logits"),
            (r"^rpn\.head\.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"),
            (r"box_head\.fc([67])", lambda m: f"box_head.fc{int(m[1]) - 5}"),
            (r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}"),
            (r"mask_predictor\.conv5_mask", "mask_head.deconv"),
            (r"mask_predictor\.mask_fcn_logits", "mask_head.predictor"),
        ],
    )


def to_mmdetection(values):
    return _renamed(
        _background_last(values),
        [
            (r"^backbone\.body\.", "backbone."),
            (r"^backbone\.fpn\.inner_blocks\.(\d)\.0", r"neck.lateral_convs.\1.conv"),
            (r"^backbone\.fpn\.layer_blocks\.(\d)\.0", r"neck.fpn_convs.\1.conv"),
            (r"^rpn\.head\.conv\.0\.0", "rpn_head.rpn_conv"),
            (r"^rpn\.head\.cls_logits", "rpn_head.rpn_cls"),
            (r"^rpn\.head\.bbox_pred", "rpn_head.rpn_reg"),
            (r"^roi_heads\.", "roi_head."),
            (r"box_head\.fc([67])", lambda m: f"bbox_head.shared_fcs.{int(m[1]) - 6}"),
            (r"box_predictor\.cls_score", "bbox_head.fc_cls"),
            (r"box_predictor\.bbox_pred", "bbox_head.fc_reg"),
            (r"mask_head\.(\d)\.0", r"mask_head.convs.\1.conv"),
            (r"mask_predictor\.conv5_mask", "mask_head.upsample"),
            (r"mask_predictor\.mask_fcn_logits", "mask_head.conv_logits"),
        ],
    )


def _background_last(values):
    moved = dict(values)
    for name, value in values.items():
        if "cls_score" in name:
            moved[name] = np.roll(value, -1, axis=0)
        elif "box_predictor.bbox_pred" in name:
            moved[name] = value[4:]
        elif "mask_fcn_logits" in name:
            moved[name] = value[1:]
    return moved


def _blob_of(layer):
    if match := re.match(r"backbone\.body\.(conv1|bn1)$", layer):
        return {"conv1": "conv1", "bn1": "res_conv1_bn"}[match[1]]
    if match := re.match(r"backbone\.body\.layer(\d)\.(\d+)\.(.+)$", layer):
        place = f"res{int(match[1]) + 1}_{match[2]}"
        if match[3].startswith("downsample"):
            return f"{place}_branch1" + ("_bn" if match[3].endswith("1") else "")
        kind, number = match[3][:-1], int(match[3][-1])
        return f"{place}_branch2{'abc'[number - 1]}" + ("_bn" if kind == "bn" else "")
    if match := re.match(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)", layer):
        level = int(match[2]) + 2
        place = f"res{level}_{(2, 3, 5, 2)[level - 2]}_sum"
        if match[1] == "layer":
            return f"fpn_{place}"
        return f"fpn_inner_{place}" + ("" if level == 5 else "_lateral")
    if match := re.match(r"rpn\.head\.(conv|cls_logits|bbox_pred)", layer):
        return {"conv": "conv_rpn"}.get(match[1], f"rpn_{match[1]}") + "_fpn2"
    if match := re.match(r"roi_heads\.mask_head\.(\d)", layer):
        return f"_[mask]_fcn{int(match[1]) + 1}"
    return layer.split(".")[-1]


def to_ngc(values):
    """Variables of NVIDIA's ResNet-50 for TensorFlow; kernels there are [h, w, in, out]."""
    variables = {}
    kinds = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for name, value in values.items():
        layer, _, variable = name.removeprefix("backbone.body.").rpartition(".")
        match = re.match(r"layer(\d)\.(\d+)\.(.+)$", layer)
        place = "conv2d"
        if match and match[3].startswith("downsample"):
            place = f"btlnck_block_{int(match[1]) - 1}_{match[2]}/shortcut/conv2d"
        elif match:
            place = f"btlnck_block_{int(match[1]) - 1}_{match[2]}/bottleneck_{match[3][-1]}"
        if value.ndim == 4:
            variables[f"resnet50/{place}/conv2d/kernel"] = value.transpose(2, 3, 1, 0)
        else:
            variables[f"resnet50/{place}/BatchNorm/{kinds.get(variable, 'gamma')}"] = value
    return variables


# --- files ----------------------------------------------------------------------------------------


def write_torch(path, values, *, wrapped_in=None):
    """Writes a state dict."""
    tensors = state_dict(values)
    write_torch_zip(path, {wrapped_in: tensors} if wrapped_in else tensors)
    return path


def write_detectron(path, values):
    return write_blobs(path, to_detectron(values))


def write_detectron2(path, values):
    content = {"model": to_detectron2(values), "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_blobs(path, blobs):
    """Writes blobs of Caffe2 as Python 2 pickles them."""
    pickled = dictionary({name: array(np.float32(value)) for name, value in blobs.items()})
    path.write_bytes(whole({"blobs": pickled, "cfg": text("MODEL: {}")}))
    return path


# --- what they compute ----------------------------------------------------------------------------


class ForeignNetwork:
    """The forward pass of torchvision and Detectron with one block per stage, in NumPy.

    Features are [batch, height, width, channels]; `values` are those programs', under torchvision's
    names. The weights of `caffe2` are for blue, green, red, with the stride in the 1x1 convolution.
    """

    def __init__(self, values, *, caffe2, epsilon):
        self.values = {name: value.astype(np.float64) for name, value in values.items()}
        self.caffe2, self.epsilon = caffe2, epsilon

    def kernel(self, name):
        return self.values[f"{name}.weight"].transpose(2, 3, 1, 0)

    def conv(self, x, name, *, stride=1):
        bias = self.values.get(f"{name}.bias", 0.0)
        return reference.conv2d(x, self.kernel(name), stride=stride, padding="symmetric", bias=bias)

    def norm(self, x, name):
        gamma, beta, mean, variance = (
            self.values[f"{name}.{v}"] for v in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + self.epsilon) * gamma + beta

    def layer(self, x, name):
        """A convolution that is the first of a sequence, and the norm behind it, if any."""
        x = self.conv(x, f"{name}.0")
        return self.norm(x, f"{name}.1") if f"{name}.1.weight" in self.values else x

    def body(self, images):
        """images: [batch, h, w, 3], red, green, blue; returns {level: map}."""
        images = images[..., ::-1] if self.caffe2 else images
        x = self.conv(images, "backbone.body.conv1", stride=2)
        x = reference.relu(self.norm(x, "backbone.body.bn1"))
        x = reference.max_pool(x, padding="symmetric")
        levels = {}
        for stage in range(1, 5):
            x = self.block(x, f"backbone.body.layer{stage}.0", stride=1 if stage == 1 else 2)
            levels[stage + 1] = x
        return levels

    def block(self, x, name, *, stride):
        y = self.conv(x, f"{name}.conv1", stride=stride if self.caffe2 else 1)
        y = reference.relu(self.norm(y, f"{name}.bn1"))
        y = self.conv(y, f"{name}.conv2", stride=1 if self.caffe2 else stride)
        y = reference.relu(self.norm(y, f"{name}.bn2"))
        y = self.norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
        x = self.norm(self.conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1")
        return reference.relu(x + y)

    def pyramid(self, images):
        return reference.pyramid(
            self.body(images),
            lambda x, level: self.layer(x, f"backbone.fpn.inner_blocks.{level - 2}"),
            lambda x, level: self.layer(x, f"backbone.fpn.layer_blocks.{level - 2}"),
        )

    def rpn(self, x):
        """Returns logits [b, h, w, 3] of objects, and deltas [b, h, w, 3, 4]."""
        hidden = reference.relu(self.conv(x, "rpn.head.conv.0.0"))
        if "rpn.head.conv.1.0.weight" in self.values:
            hidden = reference.relu(self.conv(hidden, "rpn.head.conv.1.0"))
        logits, deltas = (self.conv(hidden, f"rpn.head.{n}") for n in ("cls_logits", "bbox_pred"))
        return logits, _y_first(deltas, boxes=3)

    def dense(self, x, name):
        return x @ self.values[f"{name}.weight"].T + self.values[f"{name}.bias"]

    def boxes(self, rois):
        """rois: [n, 7, 7, c]; returns class logits [n, K + 1] and deltas [n, K + 1, 4]."""
        is_second = "roi_heads.box_head.0.0.weight" in self.values
        for index in range(4 if is_second else 0):
            rois = reference.relu(self.layer(rois, f"roi_heads.box_head.{index}"))
        x = rois.transpose(0, 3, 1, 2).reshape(len(rois), -1)  # theirs: channel, row, column
        for name in ("5",) if is_second else ("fc6", "fc7"):
            x = reference.relu(self.dense(x, f"roi_heads.box_head.{name}"))
        logits, deltas = (
            self.dense(x, f"roi_heads.box_predictor.{name}") for name in ("cls_score", "bbox_pred")
        )
        return logits, _y_first(deltas, boxes=logits.shape[-1])

    def masks(self, rois):
        """rois: [n, h, w, c]; returns [n, 2 h, 2 w, K + 1]."""
        x = rois
        for index in range(4):
            x = reference.relu(self.layer(x, f"roi_heads.mask_head.{index}"))
        name = "roi_heads.mask_predictor.conv5_mask"  # [in, out, 2, 2] there
        x = reference.transposed_conv(x, self.kernel(name), self.values[f"{name}.bias"])
        return self.conv(reference.relu(x), "roi_heads.mask_predictor.mask_fcn_logits")


def _y_first(deltas, *, boxes):
    """Turns [..., boxes * 4], (tx, ty, tw, th), into [..., boxes, 4], (ty, tx, th, tw)."""
    return deltas.reshape(*deltas.shape[:-1], boxes, 4)[..., [1, 0, 3, 2]]
