"""Ringdet from Python; the command `ringdet` is in `ringdet.command`.

import ringdet

ringdet.train(data="photos", model_dir="runs/mine", model_name="efficientdet-lite0")
model = ringdet.load("runs/mine")
for found in model.predict("more-photos"):
print(found.path, found.names, found.scores, found.boxes)
"""

import ctrl_c  # noqa: F401  (before what takes seconds to import)
import keras_choice  # noqa: F401  (before TensorFlow)

from ringdet.own_packages import require_own_packages

require_own_packages()  # before they are imported

from ringdet.model import Detections, Model, load  # noqa: E402
from ringdet.programs import evaluate, train  # noqa: E402

__all__ = ["Detections", "Model", "evaluate", "load", "train"]
