"""A training of the tiny family on any number of ranks; in train.py's place where faults are done.

Started as train.py is: flags name settings (`--model_dir=RUN`), others are passed over. Reading a
batch takes STEP_SECONDS, and on SLOW_RANK, if that is set, STUCK_SECONDS from the fifth on.
"""

import os
import sys
import time

import tensorflow as tf
from engine_tiny_family import TinyFamily, config_of
from engine_tiny_task import TinyTask

from engine.config.fields import override, settings
from engine.config.recipe_yaml import literal
from engine.ranks import distributed
from engine.ranks.guard import run_guarded
from engine.run import run_training


class SlowFamily(TinyFamily):
    """The family, with a pause before each batch."""

    def make_task(self, config, **options):
        layer = tf.keras.layers.BatchNormalization
        task = TinyTask(batch_size=config.train.batch_size, batch_norm=layer, noise=0.2)
        whole = task.train_dataset

        def train_dataset(**where):
            for number, batch in enumerate(whole(**where)):
                time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
                if number > 3 and os.environ.get("SLOW_RANK") == str(distributed.rank()):
                    time.sleep(float(os.environ["STUCK_SECONDS"]))
                yield batch

        task.train_dataset = train_dataset
        return task


def main() -> int:
    """Trains; returns the exit code."""
    config = config_of("", batch_size=2, console_seconds=0.0)
    known = settings(type(config))
    values = {}
    for word in sys.argv[1:]:
        name, found, value = word.removeprefix("--").partition("=")
        if name in known:
            values[name] = literal(value) if found else True
    return run_training(override(config, values, source="flags"), SlowFamily())


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    run_guarded(main)
