"""Samples a crop for one image and decodes only the pixels that the crop uses.

The sampling is that of google/automl and the NVIDIA reference: a scale, a crop offset and a flip,
each uniform. Unlike there the sample is drawn before decoding. Then only the region of the file
that the crop needs is decoded, with a margin for the resampling filter, and reduced by the JPEG
decoder's own 1/2, 1/4 or 1/8 where the image shrinks at least that much anyway. The result is small
uint8 pixels and a `Geometry` that says where they come from; resampling to the network size is left
to the device (`preprocess`), or done here with the same sampling positions and the same filter.

EXIF orientation is not applied: boxes refer to the stored pixels.

All functions take one image, run in `dataset.map` and eagerly, and are called for each image: an
operation more here is an operation more per image.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from object_detection.input import geometry as geometry_lib

# What the JPEG decoder can divide the size by; the last entry stands for other formats. Coordinates
# in a reduced image are those of the original divided by the ratio; its size is rounded up.
_RATIOS = (1, 2, 4, 8)
_RATIO_OF_BRANCH = (*_RATIOS, 1)


class Crop(NamedTuple):
    """The part of the scaled image that the network sees, and whether it is mirrored."""

    scaled_size: tf.Tensor  # float32 [2] (height, width), whole network pixels
    offset: tf.Tensor  # float32 [2] (y, x), whole network pixels, see `Geometry.network_offset`
    flip: tf.Tensor  # float32 [] 0 or 1


def sample_crop(
    uniforms: tf.Tensor,
    original_size: tf.Tensor,
    *,
    network_size: tuple[int, int],
    jitter: tuple[float, float],
    flip_probability: float,
    fit_size: tf.Tensor | None = None,
    translate: float = 0.0,
) -> Crop:
    """Draws scale, crop offset and flip for training.

    The image is scaled to fit into `s` times the network size, `s ~ U(jitter)`, the scaled size
    truncated to whole pixels; where it is then larger than the network, the crop's offset is
    uniform over the excess; where it is smaller, it lies at the top left and the rest is padding.

    Args:
      uniforms: float32 [4] in [0, 1): scale, y offset, x offset, flip; [6] with `translate`: y
        shift, x shift.
      original_size: float32 [2] (height, width), pixels.
      network_size: (height, width), pixels.
      jitter: least and largest `s`.
      flip_probability: of mirroring the image left to right before it is cropped.
      fit_size: float32 [2] (height, width), what the image is scaled to fit into at s = 1; none:
        the network size.
      translate: the image is shifted, after scale and crop, by a uniform share of the network size
        in [-translate, translate]; at most that share of its visible part leaves the frame.
    """
    network = tf.constant(network_size, tf.float32)
    size_factor = jitter[0] + uniforms[:1] * (jitter[1] - jitter[0])
    target = tf.floor(size_factor * network) if fit_size is None else size_factor * fit_size
    scaled = geometry_lib.scaled_size_within(original_size, target)
    excess = scaled - network
    offset = tf.floor(tf.maximum(excess, 0.0) * uniforms[1:3])
    if translate:
        visible = tf.minimum(scaled, network)
        # Down and right no more than that leaves the frame, as the image begins at its corner.
        shift = translate * (2.0 * uniforms[4:6] - 1.0) * network
        shift = tf.maximum(shift, -translate * visible)
        offset -= tf.sign(shift) * tf.floor(tf.abs(shift))
    flip = tf.cast(uniforms[3:4] < [0.0, flip_probability], tf.float32)  # (never, x)
    # The offset counts from the left edge of the mirrored image. The geometry mirrors last, so it
    # needs the same crop's offset from the left edge of the unmirrored one: excess - offset.
    return Crop(scaled_size=scaled, offset=offset + flip * (excess - 2.0 * offset), flip=flip[1])


def whole_image(
    original_size: tf.Tensor,
    *,
    network_size: tuple[int, int],
    fit_size: tf.Tensor | None = None,
) -> Crop:
    """Scales the image to fit, at the top left, neither cropped nor mirrored: evaluation.

    Arguments as of `sample_crop`.
    """
    network = tf.constant(network_size, tf.float32) if fit_size is None else fit_size
    scaled = geometry_lib.scaled_size_within(original_size, network)
    return Crop(scaled_size=scaled, offset=tf.zeros([2]), flip=tf.zeros([]))


class EncodedImage(NamedTuple):
    """An image before its crop is decoded."""

    encoded: tf.Tensor  # string []
    is_jpeg: tf.Tensor  # bool []
    pixels: tf.Tensor  # uint8 [h, w, 3]: the whole image if it is not a JPEG, else empty
    size: tf.Tensor  # float32 [2] (height, width), pixels


def open_image(encoded: tf.Tensor) -> EncodedImage:
    """Reads the size of an image; images other than JPEG are decoded for it.

    Args:
      encoded: string [], a JPEG, PNG, BMP or (first frame of a) GIF file.
    """
    is_jpeg = tf.io.is_jpeg(encoded)

    def header():
        return tf.zeros([0, 0, 3], tf.uint8), tf.io.extract_jpeg_shape(encoded)

    def decoded():
        pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return pixels, tf.shape(pixels)

    pixels, shape = tf.cond(is_jpeg, header, decoded)
    return EncodedImage(encoded, is_jpeg, pixels, tf.cast(shape[:2], tf.float32))


def decode_crop(
    image: EncodedImage,
    crop: Crop,
    frames: geometry_lib.Frames,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the pixels that a crop needs.

    Where the decoder's ratio cannot bring the region down to the canvas (an image more than
    canvas / network times as large as the network, say 1300 pixels for 512 and a canvas of 640,
    that shrinks by less than the next ratio), the region is resampled here to network scale.

    Args:
      image: from `open_image`.
      crop: from `sample_crop` or `whole_image`.
      frames: sizes, and whether all resampling is done here.

    Returns:
      (uint8 [h, w, 3] with h, w at most the canvas size, packed geometry).
    """
    scale = crop.scaled_size / image.size
    branch, ratio = _decoder_ratio(scale, image.is_jpeg, frames.resampling)
    scale_after = scale * ratio  # network pixels per decoded pixel
    frame_end = crop.offset + tf.constant(frames.network_size, tf.float32)
    first, last = tf.maximum(crop.offset, 0.0), tf.minimum(frame_end, crop.scaled_size)
    window = _window(first / scale_after, last / scale_after, image.size / ratio, scale_after)
    pixels = _decode(image, window, branch=branch)

    def resampled(part_first, part_last, limit):
        target = (part_first, part_last, tf.constant(limit, tf.float32))
        resized, size, factor = _resample(
            pixels, *target, scale_after, window[0], frames.resampling
        )
        return resized, tf.concat([part_first / scale, scale * factor, size], axis=0)

    def as_decoded():
        return pixels, tf.concat([window[0] * ratio, 1.0 / ratio + [0.0, 0.0], size], axis=0)

    size = window[1] - window[0]
    if frames.resize_on_host:
        pixels_out, placement = resampled(crop.offset, frame_end, frames.network_size)
    else:
        pixels_out, placement = tf.cond(
            tf.reduce_all(size <= tf.constant(frames.canvas_size, tf.float32)),
            as_decoded,
            lambda: resampled(first, last, frames.canvas_size),
        )
    packed = tf.concat([image.size, placement, scale, crop.offset, crop.flip[tf.newaxis]], axis=0)
    return pixels_out, packed


def _decoder_ratio(
    scale: tf.Tensor, is_jpeg: tf.Tensor, resampling: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the branch of _RATIO_OF_BRANCH that keeps the network's resolution, and its ratio."""
    shrinks = tf.reduce_max(scale) * tf.constant(_RATIOS[1:], tf.float32) <= 1.0 + 1e-5
    shrinks &= resampling == geometry_lib.ANTIALIASED
    branch = tf.where(is_jpeg, tf.reduce_sum(tf.cast(shrinks, tf.int32)), len(_RATIOS))
    return branch, tf.gather(tf.constant(_RATIO_OF_BRANCH, tf.float32), branch)


def _window(first: tf.Tensor, last: tf.Tensor, size: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Widens a region by the filter's reach, to whole pixels within the image.

    Args:
      first: [2] (y, x), pixels of the (reduced) image.
      last: [2] likewise.
      size: [2] (height, width) of the reduced image, not rounded.
      scale: [2] network pixels per pixel of the reduced image.

    Returns:
      [2, 2] first and last (y, x), whole pixels of the reduced image.
    """
    reach = tf.maximum(1.0, 1.0 / scale)
    widened = tf.floor(tf.stack([first - reach, last + reach + 1.0]))
    return tf.minimum(tf.maximum(widened, 0.0), tf.math.ceil(size))


def _decode(image: EncodedImage, window: tf.Tensor, *, branch: tf.Tensor) -> tf.Tensor:
    corner, end = tf.unstack(tf.cast(window, tf.int32))
    box = tf.concat([corner, end - corner], axis=0)

    # TensorFlow's own choice of transform, the fast one, is wrong by a grey level on average.
    def jpeg(ratio: int):
        return lambda: tf.io.decode_and_crop_jpeg(
            image.encoded, box, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )

    def other():
        return tf.slice(image.pixels, [box[0], box[1], 0], [box[2], box[3], 3])

    return tf.switch_case(branch, [*(jpeg(ratio) for ratio in _RATIOS), other])


def _resample(
    pixels: tf.Tensor,
    first: tf.Tensor,
    last: tf.Tensor,
    limit: tf.Tensor,
    scale: tf.Tensor,
    origin: tf.Tensor,
    resampling: str,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Resamples decoded pixels to network scale.

    Args:
      pixels: uint8 [h, w, 3].
      first: [2] (y, x) of the part wanted, pixels of the scaled image.
      last: [2] likewise.
      limit: [2] size that the result must not exceed; it is made smaller where it would.
      scale: [2] network pixels per decoded pixel.
      origin: [2] (y, x) of the decoded pixels in the (reduced) image.
      resampling: one of `geometry.RESAMPLINGS`.

    Returns:
      (uint8 pixels of the part, zero outside the image; their size [2]; the factor [2] by which
      they are smaller than asked for, 1 where the limit does not bind).
    """
    wanted = last - first
    size = tf.minimum(wanted, limit)
    factor = size / wanted
    translation = (origin * scale - first) * factor
    if resampling == geometry_lib.BILINEAR_LEGACY:
        translation += 0.5 - 0.5 * scale * factor
        # Its last pixels lie beyond the centre of the image's last, which they repeat.
        pixels = tf.pad(pixels, [[0, 1], [0, 1], [0, 0]], mode="SYMMETRIC")
    resampled = tf.raw_ops.ScaleAndTranslate(
        images=pixels[tf.newaxis],
        size=tf.cast(size, tf.int32),
        scale=scale * factor,
        translation=translation,
        kernel_type="triangle",
        antialias=resampling == geometry_lib.ANTIALIASED,
    )[0]
    return tf.cast(tf.clip_by_value(resampled + 0.5, 0.0, 255.0), tf.uint8), size, factor
