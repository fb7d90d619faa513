"""Training and evaluation batches of EfficientDet: record files in, batched HostExamples out.

The host reads, parses, decodes what the crop needs and copies; everything else is done on the device
(`object_detection.preprocess`). Reading and order are `object_detection.data.reader`'s matter, decoding that of
`object_detection.data.host_batches`; here their settings come together. A newcomer's trap: `start_position` counts
images of this rank since the start of the run, over all epochs, which is what makes a resume exact.
"""

import tensorflow as tf

from efficientdet.settings import EfficientDetConfig
from engine import env
from engine.task import Shard
from object_detection.class_map import ClassMap
from object_detection.data import host_batches, reader
from object_detection.data.card import DataCard
from object_detection.data.input_problems import InputProblems
from object_detection.data.tfrecord_file import record_files

# Largest set that is held in memory unless --cache_records says otherwise, bytes.
_CACHE_BYTES = 1 << 30


def resizes_on_host(config: EfficientDetConfig) -> bool:
    """True if images reach the device at the network's size.

    Without an accelerator host and device are the same cores, and the host's resize costs less than the
    device's two matrix products; both sample alike.
    """
    if config.data.resize_on == "auto":
        return not tf.config.get_visible_devices("GPU")
    return config.data.resize_on == "host"


def train_dataset(
    config: EfficientDetConfig,
    card: DataCard,
    class_map: ClassMap,
    *,
    shard: Shard,
    seed: int,
    start_position: int,
    local_ranks: int,
) -> tf.data.Dataset:
    """Returns endless training batches of one rank.

    Args:
      config: the run's settings.
      card: description of the training records.
      class_map: the model's channels.
      shard: which rank of how many.
      seed: of order and augmentation; the same on every rank.
      start_position: images that this rank has already had.
      local_ranks: ranks on this host, which share its cores.

    Returns:
      A dataset of dicts as in `object_detection.data.example.host_example_spec`.
    """
    data = config.data
    records = _records(data.training_file_pattern, card)
    stream = reader.record_stream(
        records,
        shard=reader.Shard(*shard),
        seed=seed,
        start_position=start_position,
        shuffle_buffer=data.shuffle_buffer,
        cache_below_bytes=_cache_bytes(data.cache_records),
    )
    augmentation = host_batches.Augmentation(
        jitter=(data.jitter_min, data.jitter_max),
        flip_probability=0.5 if data.input_rand_hflip else 0.0,
        seed=seed,
    )
    batches = _batches(
        config,
        card,
        class_map,
        records,
        stream,
        augmentation=augmentation,
        batch_size=config.train.batch_size,
        threads=_threads(config, local_ranks),
    )
    if config.train.use_fake_data:
        batches = batches.take(1).cache().repeat()
    return batches.prefetch(data.prefetch_batches).with_options(_options(config, local_ranks))


def eval_dataset(
    config: EfficientDetConfig,
    card: DataCard,
    class_map: ClassMap,
    *,
    shard: Shard,
    local_ranks: int,
) -> tf.data.Dataset:
    """Returns one rank's share of the validation images, each once over all ranks.

    The last batch is filled with examples that are not `valid`. Ranks whose share is smaller may have one
    batch less: nothing in an evaluation step waits for other ranks.
    """
    records = _records(config.eval.val_file_pattern, card)
    stream = reader.ordered_records(
        records,
        shard=reader.Shard(*shard),
        most_records=min(config.eval.eval_samples, records.num_records),
    )
    batches = _batches(
        config,
        card,
        class_map,
        records,
        stream,
        augmentation=None,
        batch_size=config.eval.eval_batch_size,
        threads=_threads(config, local_ranks),
    )
    return batches.prefetch(config.data.prefetch_batches).with_options(
        _options(config, local_ranks)
    )


def _batches(
    config: EfficientDetConfig,
    card: DataCard,
    class_map: ClassMap,
    records: reader.RecordSet,
    stream: tf.data.Dataset,
    *,
    augmentation: host_batches.Augmentation | None,
    batch_size: int,
    threads: int,
) -> tf.data.Dataset:
    data = config.data
    frames = host_batches.make_frames(
        config.model.image_size,
        resize_on_host=resizes_on_host(config),
        canvas_size=(data.canvas_size, data.canvas_size) if data.canvas_size else None,
        largest_image=(card.max_height, card.max_width),
    )
    problems = InputProblems(
        records,
        max_bad_records=data.max_bad_records if data.on_bad_record == "skip" else 0,
        max_instances=data.max_instances_per_image,
        on_overflow=data.on_overflow,
    )
    return host_batches.collect_batches(
        stream,
        batch_size=batch_size,
        frames=frames,
        augmentation=augmentation,
        class_of_category=class_map.category_to_class,
        max_instances=data.max_instances_per_image,
        drop_crowd=augmentation is not None and data.skip_crowd_during_training,
        problems=problems,
        threads=threads,
    )


def _records(pattern: str, card: DataCard) -> reader.RecordSet:
    files = record_files(pattern)
    counts = {shard.file: shard.num_records for shard in card.shards}
    names = [file.rsplit("/", 1)[-1] for file in files]
    known = all(name in counts for name in names)
    return reader.record_set(files, [counts[name] for name in names] if known else None)


def _cache_bytes(cache_records: bool | None) -> int:
    if cache_records is None:
        return _CACHE_BYTES
    return 1 << 62 if cache_records else 0


def _threads(config: EfficientDetConfig, local_ranks: int) -> int:
    return config.data.input_threads or env.cores_per_rank(local_ranks)


def _options(config: EfficientDetConfig, local_ranks: int) -> tf.data.Options:
    options = tf.data.Options()
    options.threading.private_threadpool_size = _threads(config, local_ranks)
    options.experimental_optimization.map_parallelization = (
        config.runtime.enable_map_parallelization
    )
    options.deterministic = True
    return options
