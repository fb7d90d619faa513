"""Records of coloured ellipses with masks, and a network small enough for unit tests."""

import numpy as np
from samples import encoded, record

from engine.config.fields import override
from maskrcnn.settings import MaskRcnnConfig, base_config
from object_detection.masks.rle import cell_coverage, encode_png
from object_detection.records.card_builder import find_or_scan_card
from object_detection.records.tfrecord_file import write_records

CATEGORY_IDS = (3, 8)  # two classes, with a gap
OBJECTS = (((8, 10, 40, 60), 0), ((30, 30, 62, 50), 1))  # (box, class) each
_COLORS = ((230, 40, 30), (40, 60, 220))

TINY = {
    "model.image_size": [64, 96],
    "model.canvases": [[64, 96], [96, 64]],
    "model.backbone_width": 8,
    "model.backbone_repeats": [1, 1, 1, 1],
    "model.norm": "batch_norm",
    "model.freeze_at": 0,
    "model.fpn_num_filters": 16,
    "model.anchor_sizes": [12, 24, 48, 64, 96],
    "model.box_mlp_dim": 32,
    "model.mask_conv_dims": [8],
    "model.mask_deconv_dim": 8,
    "rpn.rpn_batch_size_per_im": 32,
    "rpn.train_rpn_pre_nms_topn": 64,
    "rpn.train_rpn_post_nms_topn": 32,
    "rpn.test_rpn_pre_nms_topn": 64,
    "rpn.test_rpn_post_nms_topn": 24,
    "roi.batch_size_per_im": 16,
    "test.test_detections_per_image": 8,
    "test.test_score_thresh": 0.0,
    "data.max_instances_per_image": 4,
    "data.resize_on": "host",
    "data.input_threads": 1,
    "train.batch_size": 2,
    "eval.eval_batch_size": 2,
    "runtime.amp": False,
}


def tiny_config(model_name: str = "maskrcnn-r50-fpn", **changes) -> MaskRcnnConfig:
    """A configuration with the smallest network; `section__field=value` changes it."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return override(base_config(model_name), {**TINY, **named}, source="test")


def ellipse(height: int, width: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """Returns the uint8 [height, width] ellipse inside a box (y1, x1, y2, x2)."""
    y1, x1, y2, x2 = box
    rows = (np.arange(height)[:, None] + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    columns = (np.arange(width)[None, :] + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
    return (rows**2 + columns**2 <= 1.0).astype(np.uint8)


def mask_record(
    index: int,
    *,
    size=(64, 96),
    objects=OBJECTS[:1],
    is_crowd=None,
    with_masks=True,
    mask_format="bitpacked",
) -> bytes:
    """A grey image with ellipses, as `OBJECTS`; its source_id is `index + 1`."""
    pixels = np.full((*size, 3), 110, np.uint8)
    masks = []
    for box, kind in objects:
        mask = ellipse(*size, box)
        pixels[mask > 0] = _COLORS[kind]
        packed = np.packbits(cell_coverage(mask, np.array(box, float)) >= 0.5 - 1e-4).tobytes()
        masks.append(packed if mask_format == "bitpacked" else encode_png(mask))
    return record(
        str(index + 1),
        size,
        [box for box, _ in objects],
        image=encoded(pixels),
        category_ids=[CATEGORY_IDS[kind] for _, kind in objects],
        category_names=["red" if kind == 0 else "blue" for _, kind in objects],
        is_crowd=is_crowd or [False] * len(objects),
        masks=masks if with_masks else None,
        mask_format=mask_format,
    )


def write_set(folder, records):
    """Writes records to one file; returns (pattern, card)."""
    write_records(str(folder / "set-00000-of-00001.tfrecord"), records)
    pattern = str(folder / "set-*")
    return pattern, find_or_scan_card(pattern)
