"""RoIAlign against plain NumPy loops, against the integral that it approximates, and its gradient.

The loops follow the definitions of Detectron's operator, aligned and not, and of the crop of the
TF2 reference. The integral: bilinear interpolation of a map, averaged over each bin.
"""

import numpy as np
import pytest
import tensorflow as tf

from object_detection.boxes import roi_align as roi_align_module
from object_detection.boxes.roi_align import roi_align

LEVELS = {2: (16, 24), 3: (8, 12), 4: (4, 6)}
CHANNELS = 3
# The level rule at these sizes: 16 px belongs to level 2, from 16 on to 3, from 32 on to 4.
# As small as the maps: FPN's rule with 32 pixels in place of 224.
RULE = {"canonical_size": 32.0, "canonical_level": 4}


@pytest.fixture(autouse=True)
def small_boxes(monkeypatch):
    monkeypatch.setattr(roi_align_module, "_CANONICAL_SIZE", RULE["canonical_size"])


def random_features(batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        level: rng.normal(size=(batch, *shape, CHANNELS)).astype(np.float32)
        for level, shape in LEVELS.items()
    }


def random_boxes(batch=2, count=12, seed=1):
    """Boxes of all levels inside 64 x 96 pixels, the last one the whole image."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(2, 60, (batch, count, 2))
    low = rng.uniform(0, 1, (batch, count, 2)) * (np.array([64, 96]) - size)
    boxes = np.concatenate([low, low + size], -1).astype(np.float32)
    boxes[:, -1] = [0, 0, 64, 96]
    return boxes


def numpy_bilinear(feature_map, y, x, *, zero_outside):
    height, width, channels = feature_map.shape
    if zero_outside and (y < -1 or y > height or x < -1 or x > width):
        return np.zeros(channels)
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    top, left = int(np.floor(y)), int(np.floor(x))
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = (1 - dx) * feature_map[top, left] + dx * feature_map[top, right]
    lower = (1 - dx) * feature_map[bottom, left] + dx * feature_map[bottom, right]
    return (1 - dy) * upper + dy * lower


def numpy_level(box):
    area = (box[2] - box[0]) * (box[3] - box[1])
    level = np.floor(RULE["canonical_level"] + np.log2(np.sqrt(area) / RULE["canonical_size"]))
    return int(np.clip(level, min(LEVELS), max(LEVELS)))


def numpy_roi_align(feature_map, box, stride, *, size, ratio, convention):
    """One box on one map: float64 [size, size, channels]."""
    low, high = box[:2] / stride, box[2:] / stride
    if convention == "aligned":
        low, high = low - 0.5, high - 0.5
    length = high - low
    if convention == "legacy":
        length = np.maximum(length, 1.0)
    bins = length / size
    counts = [ratio or max(int(np.ceil(side)), 1) for side in bins]
    result = np.zeros((size, size, feature_map.shape[-1]))
    for i in range(size):
        for j in range(size):
            for sy in range(counts[0]):
                for sx in range(counts[1]):
                    y = low[0] + (i + (sy + 0.5) / counts[0]) * bins[0]
                    x = low[1] + (j + (sx + 0.5) / counts[1]) * bins[1]
                    result[i, j] += numpy_bilinear(
                        feature_map, y, x, zero_outside=convention != "crop"
                    )
    return result / (counts[0] * counts[1])


def expected(features, boxes, *, size, ratio, convention):
    rows = []
    for image, image_boxes in enumerate(boxes.astype(np.float64)):
        for box in image_boxes:
            level = numpy_level(box) if len(features) > 1 else min(features)
            rows.append(
                numpy_roi_align(
                    features[level][image],
                    box,
                    2.0**level,
                    size=size,
                    ratio=ratio,
                    convention=convention,
                )
            )
    return np.reshape(rows, [*boxes.shape[:2], size, size, CHANNELS])


@pytest.mark.parametrize("convention", ["aligned", "legacy", "crop"])
@pytest.mark.parametrize(("size", "ratio"), [(3, 1), (2, 2), (2, 0)])
def test_equals_numpy_loops(convention, size, ratio):
    features, boxes = random_features(), random_boxes()
    result = roi_align(
        features, boxes, output_size=size, sampling_ratio=ratio, convention=convention
    )
    np.testing.assert_allclose(
        result,
        expected(features, boxes, size=size, ratio=ratio, convention=convention),
        rtol=1e-4,
        atol=1e-5,
    )


def test_boxes_beyond_the_map_follow_each_convention():
    features = {3: random_features()[3]}
    boxes = np.array([[[-30, -20, 20, 30]], [[40, 60, 90, 140]]], np.float32)
    for convention in ("aligned", "legacy", "crop"):
        result = roi_align(features, boxes, output_size=4, sampling_ratio=2, convention=convention)
        np.testing.assert_allclose(
            result,
            expected(features, boxes, size=4, ratio=2, convention=convention),
            rtol=1e-4,
            atol=1e-5,
        )


def test_many_samples_approach_the_integral_of_the_interpolated_map():
    """A map that is linear in y and x: the mean over a bin is the value at the bin's middle."""
    level, stride = 2, 4.0
    y, x = np.mgrid[:16, :24] + 0.5  # middles of the cells
    linear = np.stack([y * stride, x * stride, 2 * y - 3 * x], axis=-1)[np.newaxis]
    boxes = np.array([[[8.0, 10.0, 50.0, 83.0], [12.3, 20.7, 17.1, 29.9]]], np.float32)
    for ratio in (1, 2, 5):
        result = roi_align(
            {level: linear.astype(np.float32)}, boxes, output_size=7, sampling_ratio=ratio
        ).numpy()
        fractions = (np.arange(7) + 0.5) / 7
        for box, roi in zip(boxes[0], result[0]):
            middle_y = box[0] + fractions * (box[2] - box[0])
            middle_x = box[1] + fractions * (box[3] - box[1])
            np.testing.assert_allclose(roi[..., 0], np.tile(middle_y[:, None], (1, 7)), rtol=1e-4)
            np.testing.assert_allclose(roi[..., 1], np.tile(middle_x, (7, 1)), rtol=1e-4)


@pytest.mark.parametrize(("convention", "ratio"), [("aligned", 2), ("legacy", 0), ("crop", 1)])
def test_gradient_is_the_transpose(convention, ratio):
    """<A f, g> = <f, A' g> for all features at once: the operator is linear in them."""
    features, boxes = random_features(seed=7), random_boxes(seed=8)
    rng = np.random.default_rng(9)
    maps = {level: tf.constant(values) for level, values in features.items()}
    with tf.GradientTape() as tape:
        tape.watch(maps)
        result = roi_align(maps, boxes, output_size=3, sampling_ratio=ratio, convention=convention)
    upstream = rng.normal(size=result.shape).astype(np.float32)
    gradients = tape.gradient(result, maps, output_gradients=tf.constant(upstream))
    forward = float(np.sum(result.numpy().astype(np.float64) * upstream))
    backward = sum(
        float(np.sum(gradients[level].numpy().astype(np.float64) * features[level]))
        for level in features
    )
    np.testing.assert_allclose(forward, backward, rtol=1e-4)
