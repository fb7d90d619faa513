"""Small evaluations for the tests of the report: one worked out by hand, a large one by chance."""

import numpy as np
from samples import instances

from object_detection.report.matches import (
    BACKGROUND,
    BOTH,
    CLASS,
    DUPLICATE,
    IGNORED,
    PLACE,
    RIGHT,
)


def dataset_of(annotations, *, num_images=1, names=("red", "blue")):
    """An instances dictionary from (image, category, box, crowd)."""
    categories = [(3 * k + 1, name) for k, name in enumerate(names)]
    images = range(1, num_images + 1)
    return instances(images, annotations, categories, size=(100, 100), ending=".png")


def found(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


OBJECTS = [(1, 1, (0, 0, 20, 20), 0), (1, 1, (50, 0, 20, 20), 0), (1, 4, (0, 50, 20, 20), 0)]
CASES = [
    (found(1, 1, (0, 0, 20, 20), 0.9), RIGHT),
    (found(1, 1, (0, 0, 20, 18), 0.8), DUPLICATE),
    (found(1, 4, (50, 0, 20, 20), 0.7), CLASS),
    (found(1, 4, (0, 55, 20, 28), 0.6), PLACE),  # 15 x 20 of 20 x 33: 0.45
    (found(1, 1, (0, 60, 20, 20), 0.5), BOTH),  # 10 x 20 of 20 x 30, of the other class
    (found(1, 4, (80, 80, 10, 10), 0.4), BACKGROUND),
    (found(1, 1, (62, 62, 20, 20), 0.3), IGNORED),
]


def random_evaluation(*, with_crowds, seed=0):
    """A set of 40 images and detections that are near, doubled, of another class or nowhere."""
    rng = np.random.default_rng(seed)
    annotations, entries = [], []
    for image in range(1, 41):
        for _ in range(rng.integers(0, 8)):
            x, y, w, h = *rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)
            category = int(rng.choice([1, 4, 7]))
            crowd = int(with_crowds and rng.random() < 0.1)
            annotations.append((image, category, (x, y, w, h), crowd))
            for _ in range(rng.integers(0, 4)):
                spread = rng.choice([0.02, 0.1, 0.3])
                moved = (x, y, w, h) + rng.normal(size=4) * spread * np.array([w, h, w / 2, h / 2])
                moved[2:] = np.maximum(moved[2:], 2)
                called = category if rng.random() < 0.8 else int(rng.choice([1, 4, 7]))
                entries.append(found(image, called, moved.tolist(), float(rng.random())))
        box = [*rng.uniform(0, 80, 2), *rng.uniform(8, 20, 2)]
        entries.append(found(image, int(rng.choice([1, 4, 7])), box, float(0.5 * rng.random())))
    return dataset_of(annotations, num_images=40, names=("a", "b", "c")), entries
