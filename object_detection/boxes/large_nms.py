"""Hard suppression where thousands of boxes stay (region proposals), whole batches at once.

`nms.batched_nms` picks one box per round and is right for a hundred detections; for a thousand
proposals of each of many levels it needs as many rounds. Here boxes come sorted and are worked
through in tiles: a tile is compared with the kept boxes of the tiles before it, and then with
itself until nothing changes. The result is that of greedy suppression, box for box.

The trap: boxes must be sorted by falling score, for "earlier" means "stronger" here.
"""

from __future__ import annotations

import tensorflow as tf

from object_detection.boxes.box_ops import Corners, corner_iou, split_corners

DEFAULT_TILE_SIZE = 256


def suppress_sorted(
    boxes: tf.Tensor,
    is_candidate: tf.Tensor,
    *,
    iou_threshold: float,
    max_kept: int | None = None,
    pixel_offset: float = 0.0,
    tile_size: int = DEFAULT_TILE_SIZE,
) -> tf.Tensor:
    """Marks the boxes that greedy suppression keeps.

    A box is kept if no kept box before it overlaps it by more than the threshold. Within a tile,
    `kept = candidate & no earlier kept box overlaps` is iterated from "all kept" until it stands
    still. After n rounds the first n boxes are right, by induction, so that there is one
    standstill only, the greedy result; chains of suppression are short, and few rounds reach it.

    Cost: N^2 / 2 overlaps per image, tile_size^2 of them kept at a time. The number of tiles and
    rounds worked through depends on the data.

    Args:
      boxes: [B, N, 4], (y1, x1, y2, x2), pixels, best first; B may count levels or classes of
        images that do not touch each other.
      is_candidate: [B, N] bool; the others are never kept and suppress nothing.
      iou_threshold: overlap beyond which a box is suppressed.
      max_kept: boxes wanted. Once every image has this many, the later tiles are left out; an
        image may still have more kept than wanted, and the first `max_kept` are right.
      pixel_offset: added to lengths in the IoU.
      tile_size: boxes per tile.

    Returns:
      [B, N] bool, without gradient.
    """
    batch_size, num_boxes = tf.shape(boxes)[0], boxes.shape[1]
    tile_size = min(tile_size, num_boxes)
    num_tiles = -(-num_boxes // tile_size)
    padding = num_tiles * tile_size - num_boxes

    def in_tiles(values: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(values, [[0, 0], [0, padding]])
        return tf.transpose(tf.reshape(padded, [batch_size, num_tiles, tile_size]), [1, 0, 2])

    corners = [in_tiles(corner) for corner in split_corners(tf.stop_gradient(boxes))]
    candidates = in_tiles(tf.cast(is_candidate, tf.int32)) > 0  # TensorFlow Lite pads numbers only
    is_before = tf.range(tile_size)[:, tf.newaxis] < tf.range(tile_size)
    options = {"iou_threshold": iou_threshold, "pixel_offset": pixel_offset}

    def keep_tile(turn: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        tile = [corner[turn] for corner in corners]

        def suppress_by(earlier: tf.Tensor, alive: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            overlaps = _overlaps([corner[earlier] for corner in corners], tile, **options)
            return earlier + 1, alive & ~_is_hit(overlaps, kept[earlier])

        _, alive = tf.while_loop(
            lambda earlier, _: earlier < turn, suppress_by, (tf.constant(0), candidates[turn])
        )
        alive = _settle(_overlaps(tile, tile, **options) & is_before, alive)
        is_turn = tf.range(num_tiles)[:, tf.newaxis, tf.newaxis] == turn
        return turn + 1, tf.where(is_turn, alive, kept)

    def is_unfinished(turn: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
        if max_kept is None:
            return turn < num_tiles
        counts = tf.reduce_sum(tf.cast(kept, tf.int32), axis=[0, 2])
        return (turn < num_tiles) & tf.reduce_any(counts < max_kept)

    _, kept = tf.while_loop(is_unfinished, keep_tile, (tf.constant(0), tf.zeros_like(candidates)))
    kept = tf.reshape(tf.transpose(kept, [1, 0, 2]), [batch_size, num_tiles * tile_size])
    return kept[:, :num_boxes]


def _overlaps(a: Corners, b: Corners, *, iou_threshold: float, pixel_offset: float) -> tf.Tensor:
    """Returns bool [B, T, T], whether box i of `a` suppresses box j of `b`."""
    rows = [corner[:, :, tf.newaxis] for corner in a]
    columns = [corner[:, tf.newaxis, :] for corner in b]
    return corner_iou(rows, columns, pixel_offset=pixel_offset) > iou_threshold


def _is_hit(overlaps: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    """Returns bool [B, T], whether a kept row of [B, T, T] overlaps a column."""
    return tf.reduce_any(overlaps & kept[:, :, tf.newaxis], axis=1)


def _settle(overlaps: tf.Tensor, alive: tf.Tensor) -> tf.Tensor:
    """Iterates suppression within a tile to its standstill.

    Args:
      overlaps: bool [B, T, T], row before column.
      alive: bool [B, T], what the tiles before left.
    """

    def iterate(kept: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        updated = alive & ~_is_hit(overlaps, kept)
        return updated, tf.reduce_any(updated != kept)

    kept, _ = tf.while_loop(lambda _, changed: changed, iterate, (alive, tf.constant(True)))
    return kept
