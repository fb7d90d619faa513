"""Interim glue by the lead: pipeline owner, replace the inside; efficientdet/task.py calls these three."""

import glob

import tensorflow as tf

from object_detection.data import host_batches, reader
from object_detection.data.input_problems import InputProblems
from engine import env


def resizes_on_host(config):
    if config.data.resize_on == "auto":
        return not tf.config.list_physical_devices("GPU")
    return config.data.resize_on == "host"


def _records(pattern, card):
    files = sorted(glob.glob(pattern))
    return reader.record_set(files, [s.num_records for s in card.shards])


def _frames(config, card):
    side = config.data.canvas_size
    return host_batches.make_frames(
        config.model.image_size,
        resize_on_host=resizes_on_host(config),
        canvas_size=(side, side) if side else None,
        largest_image=(card.max_height, card.max_width),
    )


def _options(local_ranks):
    options = tf.data.Options()
    options.threading.private_threadpool_size = max(env.cores_per_rank(local_ranks), 1)
    options.deterministic = True
    return options


def _problems(config, records):
    return InputProblems(
        records,
        max_bad_records=config.data.max_bad_records if config.data.on_bad_record == "skip" else 0,
        max_instances=config.data.max_instances_per_image,
        on_overflow=config.data.on_overflow,
    )


def train_dataset(config, card, class_map, *, shard, seed, start_position, local_ranks):
    data = config.data
    records = _records(data.training_file_pattern, card)
    stream = reader.record_stream(
        records,
        shard=reader.Shard(*shard),
        seed=seed,
        start_position=start_position,
        shuffle_buffer=data.shuffle_buffer,
    )
    batches = host_batches.collect_batches(
        stream,
        batch_size=config.train.batch_size,
        frames=_frames(config, card),
        augmentation=host_batches.Augmentation(
            (data.jitter_min, data.jitter_max), 0.5 if data.input_rand_hflip else 0.0, seed
        ),
        class_of_category=class_map.category_to_class,
        max_instances=data.max_instances_per_image,
        drop_crowd=data.skip_crowd_during_training,
        problems=_problems(config, records),
        threads=max(env.cores_per_rank(local_ranks), 1),
    )
    if config.train.use_fake_data:
        batches = batches.take(1).cache().repeat()
    return batches.prefetch(data.prefetch_batches).with_options(_options(local_ranks))


def eval_dataset(config, card, class_map, *, shard, local_ranks):
    records = _records(config.eval.val_file_pattern, card)
    most = min(config.eval.eval_samples, records.num_records)
    batch = config.eval.eval_batch_size
    per_rank = -(-most // shard.size)
    steps = -(-per_rank // batch)
    stream = reader.ordered_records(records, shard=reader.Shard(*shard), most_records=most)
    batches = host_batches.collect_batches(
        stream,
        batch_size=batch,
        frames=_frames(config, card),
        augmentation=None,
        class_of_category=class_map.category_to_class,
        max_instances=config.data.max_instances_per_image,
        drop_crowd=False,
        problems=_problems(config, records),
        threads=max(env.cores_per_rank(local_ranks), 1),
    )
    del steps
    return batches.prefetch(2).with_options(_options(local_ranks))
