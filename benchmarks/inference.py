"""Throughput and latency of a detector: uint8 images in, detections on the host out.

python -m benchmarks.inference --batch_size=8 --model_dir=RUN --image_path='DATA/val2017/*.jpg'

Percentiles are percentiles of single calls, each ended by copying the detections to the host.
Without a checkpoint the weights are random and post-processing has almost nothing to suppress: the
row says so.
"""

import json
import time
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

import families
from benchmarks.model_flags import (
    define_model_flags,
    define_precision_flags,
    flagged_config,
    is_half,
    model_columns,
)
from benchmarks.record import define_results_flag, finish
from engine.start import cli

FLAGS = flags.FLAGS

PERCENTILES = (50, 90, 95, 99)


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    define_model_flags(batch_size=1)
    flags.DEFINE_string(
        "model_dir", "", "Checkpoint prefix or folder of a run; '': random weights."
    )
    flags.DEFINE_string("image_path", "", "Images to run on; '': an image of noise.")
    flags.DEFINE_integer("bm_runs", 100, "Timed calls.")
    flags.DEFINE_integer("warmup_runs", 10, "Calls before them.")
    define_precision_flags()
    define_results_flag("inference")
    flags.DEFINE_string("dllogger_path", "", "DLLogger file with the references' keys; '': none.")


def summarize(seconds: np.ndarray, *, batch_size: int) -> dict[str, float]:
    """Returns throughput and latency of calls that took `seconds`, float [n]."""
    summary = {
        "images_per_s": batch_size / float(np.mean(seconds)),
        "latency_ms_mean": 1000.0 * float(np.mean(seconds)),
    }
    for percentile in PERCENTILES:
        summary[f"latency_ms_p{percentile}"] = 1000.0 * float(np.percentile(seconds, percentile))
    return summary


def make_batches(paths: list[str], *, size: tuple[int, int], batch_size: int) -> list[np.ndarray]:
    """Returns uint8 [batch_size, height, width, 3] batches of images scaled to fit the network."""
    from PIL import Image

    from object_detection.serve.image_files import read_image

    height, width = size
    if not paths:
        noise = np.random.default_rng(0).integers(0, 256, [batch_size, height, width, 3])
        return [noise.astype(np.uint8)]
    canvases = []
    for path in paths:
        image = Image.fromarray(read_image(path).pixels)
        image.thumbnail((width, height))
        canvas = np.zeros([height, width, 3], np.uint8)
        canvas[: image.height, : image.width] = np.asarray(image)
        canvases.append(canvas)
    while len(canvases) % batch_size:
        canvases.append(canvases[len(canvases) % len(paths)])
    return [np.stack(canvases[i : i + batch_size]) for i in range(0, len(canvases), batch_size)]


def main() -> int:
    """Times the detector; returns the exit code."""
    import tensorflow as tf

    from engine.config.fields import override
    from engine.start.process import chooses_xla
    from object_detection.serve.image_files import find_images

    half = is_half()
    tf.keras.mixed_precision.set_global_policy("mixed_float16" if half else "float32")
    if FLAGS.model_dir:
        task = families.load_task(
            FLAGS.model_dir,
            model_name=FLAGS.model_name,
            preset_name=FLAGS.preset,
            hparams=FLAGS.hparams,
        )
        config = task.config
    else:
        config = flagged_config({})
        task = families.load(config.model.name).new_task(config)
    use_xla = chooses_xla(override(config, {"use_xla": FLAGS.use_xla}, source="flag"))
    paths = find_images(FLAGS.image_path) if FLAGS.image_path else []
    batches = make_batches(paths, size=config.model.image_size, batch_size=FLAGS.batch_size)
    detect = tf.function(task.detect_images, autograph=False, jit_compile=use_xla or None)

    def call(i: int) -> tuple[float, float]:
        images = tf.constant(batches[i % len(batches)])
        start = time.perf_counter()
        detections = detect(images)
        kept = int(np.sum(detections.scores.numpy() > 0.4))
        for tensor in detections:  # masks too
            tensor.numpy()
        return time.perf_counter() - start, kept / FLAGS.batch_size

    start = time.perf_counter()
    call(0)
    first = time.perf_counter() - start
    for i in range(FLAGS.warmup_runs):
        call(i)
    timed = np.array([call(i) for i in range(FLAGS.bm_runs)])
    summary = summarize(timed[:, 0], batch_size=FLAGS.batch_size)
    row = {
        **model_columns(config, amp=half, use_xla=use_xla),
        "weights": FLAGS.model_dir or "random",
        "images": len(paths),
        "detections_per_image": float(np.mean(timed[:, 1])),
        "calls": FLAGS.bm_runs,
        "first_call_s": first,
        **summary,
    }
    finish(row, results=FLAGS.results)
    if FLAGS.dllogger_path:
        write_dllogger(FLAGS.dllogger_path, summary, task.dllogger_names)
    print(json.dumps(summary))
    return 0


def write_dllogger(
    path: str, summary: Mapping[str, float], names: Mapping[str, Sequence[str]]
) -> None:
    """Appends what `summarize` returns, in seconds, under the references' keys.

    Args:
      path: of the DLLogger file.
      summary: throughput and latencies.
      names: key of D0's inspector -> those of the family's other references.
    """
    from engine.log.meters import renamed
    from engine.log.run_log import open_dllogger

    data = {
        "inference_fps": summary["images_per_s"],
        "inference_latency_ms": summary["latency_ms_mean"],
        "latency_avg": summary["latency_ms_mean"] / 1000.0,
        **{f"latency_{p}": summary[f"latency_ms_p{p}"] / 1000.0 for p in (90, 95, 99)},
    }
    log = open_dllogger(path)
    log.log(step=[], data=data | renamed(data, names))
    log.flush()


if __name__ == "__main__":
    define_flags()
    cli.run_app(main)
