"""What can be exported: formats, stages and precisions, and which go together.

TensorFlow is not imported, so that what is not offered is said at once.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from engine.config.fields import ConfigError

PRECISIONS = {
    "savedmodel": ("float32",),
    "tflite": ("float32", "float16", "int8"),
    "onnx": ("float32",),
    "tensorrt-plan-script": ("float32", "float16"),
}
"""Of each format."""
STAGES = ("heads", "boxes", "detections")
_PACKAGES = {name: ("tf2onnx", "onnxruntime") for name in ("onnx", "tensorrt-plan-script")}
# How much a change of format, stage or precision takes away from what was asked for.
_COSTS = (4, 1, 2)


class Target(NamedTuple):
    """What is written.

    Attributes:
      format: of `PRECISIONS`.
      stage: of `STAGES`, see `DetectionTask.run_stage`.
      precision: of the format's, what is computed in.
      batch_size: images of one call.
    """

    format: str
    stage: str
    precision: str
    batch_size: int = 1

    @property
    def file_precision(self) -> str:
        """What the file itself computes in; trtexec makes a plan of another precision from it."""
        return "float32" if self.format == "tensorrt-plan-script" else self.precision

    @property
    def is_whole_detector(self) -> bool:
        """Whether it is the SavedModel of `serve.saved_model`, that takes images of any size."""
        return (self.format, self.stage) == ("savedmodel", "detections")


def check_target(target: Target, *, stages: Sequence[str] = STAGES, model_name: str = "") -> None:
    """Raises ConfigError for what is not offered, with the reason and the nearest that is.

    And for packages that are not installed, with the command that installs them.

    Args:
      target: what is asked for.
      stages: that the model's family has.
      model_name: of the model, if known.
    """
    fault = _fault(target, stages, model_name)
    if not fault:
        packages = _PACKAGES.get(target.format, ())
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"--format={target.format} needs {' and '.join(missing)}: scripts/setup_env.sh "
                "--extra export installs what goes with TensorFlow here"
            )
        return
    asked = target[:3]
    offered = [
        chosen
        for chosen in itertools.product(PRECISIONS, STAGES, ("float32", "float16", "int8"))
        if not _fault(Target(*chosen), stages, model_name)
    ]
    best = min(offered, key=lambda o: sum(c for c, a, b in zip(_COSTS, asked, o) if a != b))
    raise ConfigError(
        f"{fault}; the nearest is --format={best[0]} --stage={best[1]} --precision={best[2]}"
    )


def _fault(target: Target, stages: Sequence[str], model_name: str) -> str:
    if target.precision not in PRECISIONS[target.format]:
        offered = " or ".join(PRECISIONS[target.format])
        return f"--format={target.format} is written in {offered}, not in {target.precision}"
    if target.stage not in stages:
        return (
            f"{model_name} has no stage {target.stage} that stands by itself, as its heads need "
            "regions first"
        )
    if target.precision == "int8" and target.stage != "heads":
        return (
            "--precision=int8 is for --stage=heads, as coordinates of boxes and suppression do not "
            "fit 8 bits"
        )
    return ""
