"""A detector's stages as files for other runtimes, each compared with the checkpoint before use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from detector.export_target import Target
from detector.task import DetectionTask
from object_detection.serve import portable
from object_detection.serve.fidelity import LIMITS, Gaps, dense_gaps, detection_gaps
from object_detection.serve.run_script import run_script, tensorrt_script


def export_portable(
    task: DetectionTask, folder: str | Path, target: Target, photographs: Sequence[np.ndarray]
) -> str:
    """Writes the file, a script that runs it and labels.json; compares before it is in place.

    Args:
      task: with its weights, in float32.
      folder: replaced if an earlier export is there.
      target: what is written, of what `check_target` allows.
      photographs: uint8 [h, w, 3], on which both are compared and int8 takes its ranges.

    Returns:
      What to tell: where the file is, and by how much it differs.

    Raises:
      ValueError: the folder holds something else, there is no photograph or nothing is found in
        any, the runtime lacks something, or the file gives other results.
    """
    if not photographs:
        raise ValueError("expected at least one photograph to compare the file on")
    folder = Path(folder).resolve()  # of a link: what it leads to
    if folder.exists() and not (folder / "interface.json").is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"{folder} holds something else than such an export: choose another")
    aside = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    batches = fitted_batches(task, photographs, target.batch_size)
    module = portable.PortableModule(
        lambda images: task.run_stage(images, target.stage),
        task.model.variables,
        batches[0].shape[:3],
    )
    path = portable.convert(
        module, aside, images=batches, format=target.format, precision=target.file_precision
    )
    gaps = compare(task, module, portable.open_runtime(path, format=target.format), batches, target)
    limits = LIMITS[target.file_precision]
    if not gaps.within(limits):
        raise ValueError(
            f"{target.format} in {target.precision} differs from the checkpoint: {gaps} (at most "
            f"{limits}); left in {aside}. Other precisions and earlier stages lose less"
        )
    shutil.rmtree(aside / "saved", ignore_errors=True)
    classes = task.class_map.categories.items()
    labels = [{"class_id": k, "category_id": c, "name": name} for k, (c, name) in classes]
    interface = {
        **target._asdict(),
        "input": list(batches[0].shape),
        "fill": list(task.config.model.mean_rgb),
        "outputs": {name: list(value.shape) for name, value in module(batches[0]).items()},
        "gaps": gaps._asdict(),
        "images_compared": len(photographs),
    }
    (aside / "labels.json").write_text(json.dumps(labels))
    (aside / "interface.json").write_text(json.dumps(interface, indent=1))
    (aside / "run.py").write_text(run_script(target.format, stage=target.stage))
    if target.format == "tensorrt-plan-script":
        (aside / "build_plan.sh").write_text(tensorrt_script(target.precision))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    count = len(photographs)
    return f"{folder / path.name}: on {count} images it differs from the checkpoint in {gaps}"


def fitted_batches(
    task: DetectionTask, photographs: Sequence[np.ndarray], batch_size: int
) -> list[np.ndarray]:
    """Returns photographs as the exported file takes them, the last batch filled up from the first.

    Returns:
      float32 [batch, height, width, 3] each.
    """
    size, fill = task.network_sizes[0], task.config.model.mean_rgb
    fitted = [portable.fit_image(image, size, fill) for image in photographs]
    return [
        np.stack([fitted[(start + i) % len(fitted)] for i in range(batch_size)])
        for start in range(0, len(fitted), batch_size)
    ]


def compare(
    task: DetectionTask,
    ours: portable.Runner,
    theirs: portable.Runner,
    batches: Sequence[np.ndarray],
    target: Target,
) -> Gaps:
    """Returns the largest gaps over batches of input.

    Raises:
      ValueError: nothing is detected in any, so that nothing can be compared.
    """
    side = float(max(task.network_sizes[0]))
    results = []
    for run in (ours, theirs):
        decoded = [_decoded(task, run(batch), target.stage) for batch in batches]
        result = {name: np.concatenate([one[name] for one in decoded]) for name in decoded[0]}
        results.append({**result, "boxes": result["boxes"] / side})
    if target.stage != "detections":
        return dense_gaps(*results)
    if not np.any(results[0]["num_valid"]):
        raise ValueError(
            "nothing is detected in these photographs, so that nothing can be compared: "
            "give --images that show what the model was trained on"
        )
    return detection_gaps(*results, limits=LIMITS[target.file_precision])


def _decoded(
    task: DetectionTask, outputs: Mapping[str, np.ndarray], stage: str
) -> dict[str, np.ndarray]:
    if stage != "heads":
        return dict(outputs)
    decoded = task.decode_heads({name: tf.constant(value) for name, value in outputs.items()})
    return {name: value.numpy() for name, value in decoded.items()}
