"""CPU time of the input pipeline for each image, against parsing and decoding alone.

python -m benchmarks.input_pipeline --data_dir=COCO
python -m benchmarks.input_pipeline --data_dir=COCO --mode=eval
python -m benchmarks.input_pipeline --data_dir=COCO --model_name=maskrcnn-r50-fpn --batch_size=4
python -m benchmarks.input_pipeline --records='DATA/train-*' --batch_size=200

The floor is the same records, read, parsed and decoded whole, in the same process. Both take turns,
so that a change in the machine's speed meets both, and each turn ends when the process has fallen
silent, so that work done ahead is counted where it belongs. CPU time is user and system time of all
threads; other processes disturb it little. The last line is JSON.

With --resize_on=device, the default, the accelerator's part (resampling, mirroring, normalising) is
not in the figure: on the host it would be the same cores.
"""

import dataclasses
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from benchmarks.record import define_results_flag, finish
from engine.config.fields import ConfigError, Section, setting
from engine.start import cli

FLAGS = flags.FLAGS

_PREFETCH = 2
# Batches in buffers and under way when the consumer pauses, with some to spare.
_AHEAD = 6
_SILENCE_SECONDS = 0.1


class Turn(NamedTuple):
    """One turn of a pipeline."""

    cpu_ms_per_image: float
    images_per_s: float


@dataclasses.dataclass(frozen=True)
class Settings(Section):
    """What is measured."""

    model_name: str = setting(
        "efficientdet-d0", "Model whose input is measured, with masks where it learns them."
    )
    mode: str = setting("train", "Training or evaluation input.", choices=("train", "eval"))
    image_size: int = setting(0, "Side of the network input, pixels; 0: the model's.", least=0)
    batch_size: int = setting(64, "Images in a batch.", least=1)
    rounds: int = setting(7, "Turns of each pipeline.", least=1)
    images_per_round: int = setting(512, "Images in each turn, up to whole batches.", least=1)
    threads: int = setting(0, "Of each pipeline; 0: the cores of this process.", least=0)
    resize_on: str = setting("device", "Where to resample.", choices=("device", "host"))
    cache: bool = setting(True, "Hold the encoded records in memory.")


def define_flags() -> None:
    """Defines the flags; when run only, as other benchmarks have flags of the same names."""
    flags.DEFINE_string(
        "data_dir", "", "COCO directory: annotations/instances_SPLIT.json and images."
    )
    flags.DEFINE_string("split", "", "Split of --data_dir; '': the one that --mode suggests.")
    flags.DEFINE_string("records", "", "Glob of record files, instead of --data_dir.")
    cli.define_fields(Settings)
    define_results_flag("input_pipeline")


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    if bool(FLAGS.data_dir) == bool(FLAGS.records):
        raise ConfigError("expected either --data_dir or --records")
    settings = Settings(**cli.given_fields(Settings))
    with tempfile.TemporaryDirectory() as folder:
        pattern = FLAGS.records or convert_records(
            FLAGS.data_dir,
            split=FLAGS.split,
            mode=settings.mode,
            folder=folder,
            with_masks=learns_masks(settings),
        )
        figures = measure(pattern, settings)
    finish({"data": FLAGS.data_dir or FLAGS.records, **figures}, results=FLAGS.results)
    names = ("cpu_ms_per_image", "floor_cpu_ms_per_image", "ratio_to_floor", "images_per_s")
    print(json.dumps({name: round(figures[name], 4) for name in names}))
    return 0


def learns_masks(settings: Settings) -> bool:
    """Returns whether training of the model reads masks; evaluation never does."""
    return settings.mode == "train" and settings.model_name.startswith("maskrcnn-")


def convert_records(
    data_dir: str, *, split: str, mode: str, folder: str, with_masks: bool = False
) -> str:
    """Converts a split of a COCO directory to records in `folder`; returns their pattern.

    Raises:
      FileNotFoundError: there is no annotation file of the split.
    """
    from object_detection.coco.annotations import read_annotations
    from object_detection.convert.convert import convert

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
    convert(
        annotations,
        images,
        f"{folder}/{wanted[0]}",
        num_shards=4,
        num_workers=1,
        mask_format="bitpacked" if with_masks else None,
    )
    return f"{folder}/{wanted[0]}-*"


def measure(pattern: str, settings: Settings) -> dict[str, Any]:
    """Times floor and pipeline on the records of a pattern; returns the figures of a row."""
    from engine.ranks import machine
    from object_detection.records.card_builder import find_or_scan_card
    from object_detection.records.reader import record_set
    from object_detection.records.tfrecord_file import record_files

    card = find_or_scan_card(pattern)
    records = record_set(record_files(pattern))
    threads = settings.threads or machine.available_cores()
    settings = dataclasses.replace(settings, threads=threads)
    pipeline, frames = make_pipeline(records, card, settings)
    turns = take_turns(
        {"floor": iter(make_floor(records, settings)), "pipeline": iter(pipeline)},
        batch_size=settings.batch_size,
        rounds=settings.rounds,
        num_batches=-(-settings.images_per_round // settings.batch_size),
    )
    floor, ours = turns["floor"], turns["pipeline"]
    return {
        **dataclasses.asdict(settings),
        "canvas": " ".join("x".join(map(str, frame.canvas_size)) for frame in frames),
        "images": records.num_records,
        "kb_per_image": records.num_bytes / records.num_records / 1e3,
        "floor_cpu_ms_per_image": statistics.median(turn.cpu_ms_per_image for turn in floor),
        "cpu_ms_per_image": statistics.median(turn.cpu_ms_per_image for turn in ours),
        "ratio_to_floor": statistics.median(
            a.cpu_ms_per_image / b.cpu_ms_per_image for a, b in zip(ours, floor)
        ),
        "floor_images_per_s": statistics.median(turn.images_per_s for turn in floor),
        "images_per_s": statistics.median(turn.images_per_s for turn in ours),
    }


def make_pipeline(records, card, settings: Settings):
    """Returns (endless batches of HostExamples, tuple of `Frames`)."""
    from benchmarks.model_flags import benchmark_config
    from object_detection.input.canvases import frames_of_networks
    from object_detection.input.datasets import training_batches, with_threads
    from object_detection.input.loader import Augmentation, Reading, collect_batches
    from object_detection.input.problems import InputProblems

    side = settings.image_size
    given = {"model.image_size": (side, side)} if side else {}
    config = benchmark_config(settings.model_name, given=given)
    size = config.model.image_size
    has_canvases = hasattr(config.model, "canvas_sizes")
    frames = frames_of_networks(
        config.model.canvas_sizes if has_canvases else (size,),
        side_limits=size if has_canvases else None,
        resize_on_host=settings.resize_on == "host",
        largest_image=(card.max_height, card.max_width),
    )
    reading = Reading(
        batch_size=settings.batch_size,
        frames=tuple(frames),
        class_of_category={c.category_id: c.class_id for c in card.categories},
        problems=InputProblems(records, max_bad_records=100, max_instances=100),
        threads=settings.threads,
        with_masks=learns_masks(settings),
    )
    if settings.mode == "train":
        augmentation = Augmentation(
            jitter=(config.data.jitter_min, config.data.jitter_max), flip_probability=0.5, seed=0
        )
        batches = training_batches(
            records, reading, augmentation=augmentation, cache_below_bytes=_cache_bytes(settings)
        )
        return batches, frames
    # Evaluation input for ever: one pass over a small set would be over too soon.
    stream = make_stream(records, settings)
    batches = collect_batches(stream, reading, augmentation=None, drop_crowd=False)
    return with_threads(batches.prefetch(_PREFETCH), settings.threads), frames


def make_floor(records, settings: Settings):
    """Returns endless batches of shapes of images that were parsed and decoded, nothing else."""
    import tensorflow as tf

    from object_detection.input.datasets import with_threads
    from object_detection.records import schema

    def parse_and_decode(data_epoch, record_index, serialized):
        encoded = tf.io.parse_single_example(serialized, schema.parse_spec())[schema.ENCODED]
        return tf.shape(tf.io.decode_image(encoded, channels=3, expand_animations=False))

    stream = make_stream(records, settings)
    decoded = stream.map(parse_and_decode, num_parallel_calls=settings.threads)
    batches = decoded.batch(settings.batch_size).prefetch(_PREFETCH)
    return with_threads(batches, settings.threads)


def make_stream(records, settings: Settings):
    """Returns the serialised records for ever, as training reads them."""
    from object_detection.records.reader import Shard, record_stream

    return record_stream(records, shard=Shard(), seed=0, cache_below_bytes=_cache_bytes(settings))


def _cache_bytes(settings: Settings) -> int:
    return 1 << 62 if settings.cache else 0


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
    define_flags()
    cli.run_app(main)
