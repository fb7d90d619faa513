"""One function of a detector as a file for another runtime: TFLite, ONNX, or a fixed SavedModel.

Input is float32 [batch, height, width, 3], RGB, 0..255, an image scaled to fit the upper left
corner; what is left is of the mean colour. Normalisation is inside. What each runtime needs is
imported where it is used, as ONNX's packages are optional.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

FILES = {"savedmodel": "saved_model", "tflite": "model.tflite", "onnx": "model.onnx"}
FILES["tensorrt-plan-script"] = FILES["onnx"]
_OPSET = 17

Outputs = Mapping[str, np.ndarray]
Runner = Callable[[np.ndarray], Outputs]


class PortableModule(tf.Module):
    """What is converted: named outputs of images of one size.

    Args:
      outputs_of: float32 [batch, height, width, 3] -> named outputs.
      variables: of the model.
      shape: (batch, height, width) of the input.
    """

    def __init__(
        self,
        outputs_of: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
        variables: Sequence[tf.Variable],
        shape: tuple[int, int, int],
    ):
        super().__init__()
        self.weights, self.shape = variables, shape
        signature = [tf.TensorSpec([*shape, 3], tf.float32, name="images")]
        self.run = tf.function(
            lambda images: dict(outputs_of(images)), autograph=False, input_signature=signature
        )

    def __call__(self, images: np.ndarray) -> Outputs:
        """Runs it here."""
        return {name: value.numpy() for name, value in self.run(tf.constant(images)).items()}


def fit_image(image: np.ndarray, shape: tuple[int, int], fill: Sequence[float]) -> np.ndarray:
    """Scales an image to fit the upper left corner of the input.

    Args:
      image: uint8 [h, w, 3].
      shape: (height, width) of the input.
      fill: colour of what is left.

    Returns:
      float32 [height, width, 3].
    """
    scale = min(shape[0] / image.shape[0], shape[1] / image.shape[1])
    size = [max(int(side * scale + 1e-3), 1) for side in image.shape[1::-1]]  # (width, height)
    fitted = np.empty([*shape, 3], np.float32)
    fitted[:] = fill
    fitted[: size[1], : size[0]] = Image.fromarray(image).resize(size, Image.BILINEAR)
    return fitted


def convert(
    module: PortableModule,
    folder: Path,
    *,
    format: str,
    precision: str,
    images: Sequence[np.ndarray],
) -> Path:
    """Writes a file of a format; not yet compared with anything.

    Args:
      module: what is converted.
      folder: where it goes.
      format: of `FILES`.
      precision: float32, or what the format's converter offers.
      images: batches of input, of which int8 takes its ranges.

    Raises:
      ValueError: the converter or the runtime lacks something; says what it said.
    """
    path = folder / FILES[format]
    try:
        if format == "savedmodel":
            tf.saved_model.save(module, str(path), signatures=module.run)
        elif format == "tflite":
            path.write_bytes(_tflite(module, folder / "saved", precision, images))
        else:
            _write_onnx(module, path)
    except Exception as error:  # converters raise errors of their own kinds
        raise ValueError(
            f"{format} cannot hold this model in {precision}: {_reason(error)}"
        ) from error
    return path


def _tflite(
    module: PortableModule, aside: Path, precision: str, images: Sequence[np.ndarray]
) -> bytes:
    tf.saved_model.save(module, str(aside), signatures=module.run)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(aside))
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = lambda: ({"images": batch} for batch in images)
    with _silenced():
        return converter.convert()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drops what native code writes to stderr: TensorFlow Lite lists every operator there."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _reason(error: Exception) -> str:
    """Returns the operators that a runtime lacks, where that is why, else the first line."""
    lacking = re.search(r"(?:TF Select|Custom) ops: ([^\n]+)", str(error))
    if lacking:
        return f"it has no {lacking[1].strip()} of this kind"
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return first[0][:300]


def _write_onnx(module: PortableModule, path: Path) -> None:
    import tf2onnx

    tf2onnx.convert.from_function(
        module.run,
        input_signature=module.run.input_signature,
        opset=_OPSET,
        output_path=str(path),
    )


def open_runtime(path: Path, *, format: str) -> Runner:
    """Loads a converted file in its own runtime.

    Raises:
      RuntimeError, ValueError: the runtime does not take the file.
    """
    if format == "savedmodel":
        loaded = tf.saved_model.load(str(path))
        signature = loaded.signatures["serving_default"]
        return lambda images: {
            name: value.numpy() for name, value in signature(images=tf.constant(images)).items()
        }
    if format == "tflite":
        interpreter = tf.lite.Interpreter(str(path))
        runner = interpreter.get_signature_runner()
        return lambda images: runner(images=images)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (given,) = session.get_inputs()
    return lambda images: dict(zip(names, session.run(names, {given.name: images})))
