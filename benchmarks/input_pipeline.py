"""CPU time of the input pipeline for each image, against parsing and decoding alone.

python -m benchmarks.input_pipeline --data_dir=COCO
python -m benchmarks.input_pipeline --data_dir=COCO --mode=eval
python -m benchmarks.input_pipeline --records='DATA/train-*' --batch_size=200

The floor is the same records, read, parsed and decoded whole, in the same process. Both take turns,
so that a change in the machine's speed meets both, and each turn ends when the process has fallen
silent, so that work done ahead is counted where it belongs. CPU time is user and system time of all
threads; other processes disturb it little. The last line is JSON.

With --resize_on=device, the default, the accelerator's part (resampling, mirroring, normalising) is
not in the figure: on the host it would be the same cores.
"""

import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from engine import cli
from engine.config import ConfigError

flags.DEFINE_string("data_dir", "", "COCO directory: annotations/instances_SPLIT.json and images.")
flags.DEFINE_string("split", "", "Split of --data_dir; '': the first that --mode suggests.")
flags.DEFINE_string("records", "", "Glob of record files, instead of --data_dir.")
flags.DEFINE_enum("mode", "train", ["train", "eval"], "Training or evaluation input.")
flags.DEFINE_string("model_name", "efficientdet-d0", "Model, for the image size.")
flags.DEFINE_integer("image_size", 0, "Side of the network input, pixels; 0: the model's.")
flags.DEFINE_integer("batch_size", 64, "Images in a batch.")
flags.DEFINE_integer("rounds", 7, "Turns of each pipeline.")
flags.DEFINE_integer("images_per_round", 512, "Images timed in each turn, rounded up to batches.")
flags.DEFINE_integer("threads", 0, "Threads of each pipeline; 0: the cores of this process.")
flags.DEFINE_enum("resize_on", "device", ["device", "host"], "Where images are resampled.")
flags.DEFINE_bool("cache", True, "Hold the encoded records in memory.")
flags.DEFINE_string(
    "results", "benchmarks/results/input_pipeline.csv", "CSV to append to; '': none."
)
FLAGS = flags.FLAGS

_PREFETCH = 2
# Batches in buffers and under way when the consumer pauses, with some to spare.
_AHEAD = 6
_SILENCE_SECONDS = 0.1


class Turn(NamedTuple):
    """One turn of a pipeline."""

    cpu_ms_per_image: float
    images_per_s: float


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}")
    if bool(FLAGS.data_dir) == bool(FLAGS.records):
        raise ConfigError("expected either --data_dir or --records")
    # As in training: freed batches are kept for the next ones (see docs/performance.md).
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
    from benchmarks.record import append_row, circumstances, print_table

    with tempfile.TemporaryDirectory() as folder:
        pattern = FLAGS.records or convert_records(FLAGS.data_dir, FLAGS.split, FLAGS.mode, folder)
        figures = measure(pattern)
    row = {**circumstances(), "data": FLAGS.data_dir or FLAGS.records, **figures}
    print_table(row)
    if FLAGS.results:
        append_row(FLAGS.results, row)
    names = ("cpu_ms_per_image", "floor_cpu_ms_per_image", "ratio_to_floor", "images_per_s")
    print(json.dumps({name: round(figures[name], 4) for name in names}))
    return 0


def convert_records(data_dir: str, split: str, mode: str, folder: str) -> str:
    """Converts a split of a COCO directory to records in `folder`; returns their pattern.

    Raises:
      FileNotFoundError: there is no annotation file of the split.
    """
    from object_detection.data.coco_json import read_annotations
    from object_detection.data.convert import convert

    found = sorted(Path(data_dir).glob("annotations/instances_*.json"))
    splits = [path.stem.removeprefix("instances_") for path in found]
    prefix = "train" if mode == "train" else "val"
    wanted = [split] if split else [s for s in splits if s.startswith(prefix)] or splits
    if not wanted or wanted[0] not in splits:
        raise FileNotFoundError(
            f"no {data_dir}/annotations/instances_{split or '*'}.json; splits: {splits or 'none'}"
        )
    images = Path(data_dir) / wanted[0]
    images = images if images.is_dir() else Path(data_dir) / "images"
    annotations = read_annotations(found[splits.index(wanted[0])])
    convert(annotations, images, f"{folder}/{wanted[0]}", num_shards=4, num_workers=1)
    return f"{folder}/{wanted[0]}-*"


def measure(pattern: str) -> dict[str, Any]:
    """Times floor and pipeline on the records of a pattern; returns the figures of a row."""
    from engine import env
    from object_detection.data.card_builder import find_or_scan_card
    from object_detection.data.reader import record_set
    from object_detection.data.tfrecord_file import record_files

    card = find_or_scan_card(pattern)
    records = record_set(record_files(pattern))
    threads = FLAGS.threads or env.available_cores()
    pipeline, frames = make_pipeline(records, card, threads=threads)
    turns = take_turns(
        {"floor": iter(make_floor(records, threads=threads)), "pipeline": iter(pipeline)},
        batch_size=FLAGS.batch_size,
        rounds=FLAGS.rounds,
        num_batches=-(-FLAGS.images_per_round // FLAGS.batch_size),
    )
    floor, ours = turns["floor"], turns["pipeline"]
    return {
        "mode": FLAGS.mode,
        "model": FLAGS.model_name,
        "image_size": "x".join(map(str, frames.network_size)),
        "canvas": "x".join(map(str, frames.canvas_size)),
        "resize_on": FLAGS.resize_on,
        "batch_size": FLAGS.batch_size,
        "threads": threads,
        "cache": FLAGS.cache,
        "allocator": "bfc" if os.environ.get("TF_CPU_ALLOCATOR_USE_BFC") == "1" else "malloc",
        "images": records.num_records,
        "kb_per_image": records.num_bytes / records.num_records / 1e3,
        "rounds": FLAGS.rounds,
        "images_per_round": FLAGS.images_per_round,
        "floor_cpu_ms_per_image": statistics.median(turn.cpu_ms_per_image for turn in floor),
        "cpu_ms_per_image": statistics.median(turn.cpu_ms_per_image for turn in ours),
        "ratio_to_floor": statistics.median(
            a.cpu_ms_per_image / b.cpu_ms_per_image for a, b in zip(ours, floor)
        ),
        "floor_images_per_s": statistics.median(turn.images_per_s for turn in floor),
        "images_per_s": statistics.median(turn.images_per_s for turn in ours),
    }


def make_pipeline(records, card, *, threads: int):
    """Returns (endless batches of HostExamples, `Frames`) as the flags ask."""
    from efficientdet.config import model_config
    from object_detection.data.host_batches import Augmentation, collect_batches, make_frames
    from object_detection.data.input_datasets import training_batches, with_threads
    from object_detection.data.input_problems import InputProblems

    size = FLAGS.image_size
    frames = make_frames(
        (size, size) if size else model_config(FLAGS.model_name).image_size,
        resize_on_host=FLAGS.resize_on == "host",
        largest_image=(card.max_height, card.max_width),
    )
    common = {
        "batch_size": FLAGS.batch_size,
        "frames": frames,
        "class_of_category": {c.category_id: c.class_id for c in card.categories},
        "max_instances": 100,
        "problems": InputProblems(records, max_bad_records=100, max_instances=100),
        "threads": threads,
    }
    if FLAGS.mode == "train":
        augmentation = Augmentation(jitter=(0.1, 2.0), flip_probability=0.5, seed=0)
        cache = 1 << 62 if FLAGS.cache else 0
        batches = training_batches(
            records, augmentation=augmentation, cache_below_bytes=cache, **common
        )
        return batches, frames
    stream = make_stream(records)
    batches = collect_batches(stream, augmentation=None, drop_crowd=False, **common)
    return with_threads(batches.prefetch(_PREFETCH), threads), frames


def make_floor(records, *, threads: int):
    """Returns endless batches of shapes of images that were parsed and decoded, nothing else."""
    import tensorflow as tf

    from object_detection.data import schema
    from object_detection.data.input_datasets import with_threads

    def parse_and_decode(data_epoch, record_index, serialized):
        parsed = schema.parse_record(serialized)
        return tf.shape(tf.io.decode_image(parsed["encoded"], channels=3, expand_animations=False))

    decoded = make_stream(records).map(parse_and_decode, num_parallel_calls=threads)
    return with_threads(decoded.batch(FLAGS.batch_size).prefetch(_PREFETCH), threads)


def make_stream(records):
    """Returns the serialised records for ever, as training reads them."""
    from object_detection.data.reader import Shard, record_stream

    cache = 1 << 62 if FLAGS.cache else 0
    return record_stream(records, shard=Shard(), seed=0, cache_below_bytes=cache)


def take_turns(
    pipelines: dict[str, Iterator[Any]], *, batch_size: int, rounds: int, num_batches: int
) -> dict[str, list[Turn]]:
    """Times each pipeline in turns, after one turn that is not counted."""
    turns: dict[str, list[Turn]] = {name: [] for name in pipelines}
    for round_index in range(rounds + 1):
        for name, batches in pipelines.items():
            turn = _take_turn(lambda b=batches: next(b), batch_size, num_batches)
            if round_index:
                turns[name].append(turn)
    return turns


def _take_turn(next_batch: Callable[[], Any], batch_size: int, num_batches: int) -> Turn:
    before = _cpu_seconds_when_silent()
    for _ in range(_AHEAD):
        next_batch()
    start = time.perf_counter()
    for _ in range(num_batches):
        next_batch()
    seconds = time.perf_counter() - start
    # What was ahead at the start was consumed, and as much has been made anew by now.
    cpu_seconds = _cpu_seconds_when_silent() - before
    num_images = (num_batches + _AHEAD) * batch_size
    return Turn(1e3 * cpu_seconds / num_images, num_batches * batch_size / seconds)


def _cpu_seconds_when_silent() -> float:
    """Waits until this process computes no more; returns its CPU time."""
    last = _cpu_seconds()
    while True:
        time.sleep(_SILENCE_SECONDS)
        now = _cpu_seconds()
        if now - last < 0.03 * _SILENCE_SECONDS:
            return now
        last = now


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    cli.run_app(main)
