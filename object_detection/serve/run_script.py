"""The short programs that stand beside an exported model and show how it is run."""

from __future__ import annotations

_BEGINNING = '''\
"""python run.py PHOTO: runs {file} beside it. Needs NumPy, Pillow and {package}."""
import json, pathlib, sys
import numpy as np
from PIL import Image
{imports}
here = pathlib.Path(__file__).parent
photo = Image.open(sys.argv[1]).convert("RGB")
'''

_FITTED = """\
about = json.loads((here / "interface.json").read_text())
scale = min(about["input"][1] / photo.height, about["input"][2] / photo.width)
small = photo.resize([max(int(side * scale + 1e-3), 1) for side in photo.size], Image.BILINEAR)
images = np.full(about["input"], about["fill"], np.float32)
images[:, : small.height, : small.width] = small
"""

_DETECTIONS = """\
names = {{c["{key}"]: c["name"] for c in json.loads((here / "{labels}").read_text())}}
print(int(count), "detections; the best, with (y1, x1, y2, x2) in pixels of the photo:")
for box, score, k in list(zip(boxes, scores, classes))[: min(int(count), 5)]:
    corners = [round(float(side), 1) for side in box / scale]
    print(names.get(int(k), int(k)), round(float(score), 4), corners)
"""

_FITTED_DETECTIONS = (
    'order = ("boxes", "scores", "classes", "num_valid")\n'
    "boxes, scores, classes, count = (outputs[name][0] for name in order)\n"
) + _DETECTIONS.format(key="class_id", labels="labels.json")

_WHOLE = (
    "run, scale = tf.saved_model.load(str(here)), 1.0\n"
    "outputs = run(np.asarray(photo)[np.newaxis])\n"
    "boxes, scores, classes, count = (value.numpy()[0] for value in outputs[:4])\n"
) + _DETECTIONS.format(key="category_id", labels="assets/labels.json")

_TENSORS = """\
for name, value in sorted(outputs.items()):
    print(name, value.dtype, value.shape, float(value.min()), float(value.max()))
"""

_ONNX = (
    "model.onnx",
    "onnxruntime",
    "import onnxruntime\n",
    'session = onnxruntime.InferenceSession(str(here / "model.onnx"))\n'
    "names = [output.name for output in session.get_outputs()]\n"
    "outputs = dict(zip(names, session.run(names, {session.get_inputs()[0].name: images})))\n",
)
# The file, what runs it, its imports, and the lines from `images` to `outputs`.
_RUNTIMES = {
    "savedmodel": (
        "saved_model",
        "TensorFlow",
        "import tensorflow as tf\n",
        'run = tf.saved_model.load(str(here / "saved_model")).signatures["serving_default"]\n'
        "outputs = {name: v.numpy() for name, v in run(images=tf.constant(images)).items()}\n",
    ),
    "tflite": (
        "model.tflite",
        "ai_edge_litert or TensorFlow",
        "try:\n"
        "    from ai_edge_litert.interpreter import Interpreter\n"
        "except ImportError:\n"
        "    from tensorflow import lite\n\n"
        "    Interpreter = lite.Interpreter\n",
        'interpreter = Interpreter(str(here / "model.tflite"))\n'
        "outputs = interpreter.get_signature_runner()(images=images)\n",
    ),
    "onnx": _ONNX,
    "tensorrt-plan-script": _ONNX,
}


def run_script(format: str, *, stage: str) -> str:
    """Returns the program that runs a file of a format on a photo.

    Args:
      format: of the file.
      stage: whose outputs it prints.
    """
    file, package, imports, run = _RUNTIMES[format]
    show = _FITTED_DETECTIONS if stage == "detections" else _TENSORS
    return _BEGINNING.format(file=file, package=package, imports=imports) + _FITTED + run + show


def saved_model_script() -> str:
    """Returns the program that runs the SavedModel of `saved_model` on a photo."""
    beginning = _BEGINNING.format(
        file="the SavedModel", package="TensorFlow", imports="import tensorflow as tf\n"
    )
    return beginning + _WHOLE


def tensorrt_script(precision: str) -> str:
    """Returns the shell script that builds a TensorRT plan of model.onnx."""
    half = " --fp16" if precision == "float16" else ""
    return (
        "#!/usr/bin/env bash\n"
        "# Builds model.plan of model.onnx on the GPU it will run on. Untried.\n"
        "set -euo pipefail\n"
        'cd "$(dirname "${BASH_SOURCE[0]}")"\n'
        f"trtexec --onnx=model.onnx --saveEngine=model.plan{half}\n"
    )
