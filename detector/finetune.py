"""`--recipe=finetune`: settings that follow from the length of a run and the size of its set.

For training from weights on a set of one's own: hours at most, tens to some ten thousand images.
TensorFlow is not imported. What follows from what, in steps of the optimizer:

* A twentieth of the run, the *window*, is enough for whatever has to settle: the warm-up is as long
  (1000 steps at most), the weights' average reaches back as far, and batch-norm statistics follow
  within it, four time constants long.
* The rate grows with the square root of the global batch, as suits AdamW (arXiv 2205.10287), and
  falls with the fourth root of the length, from 1000 steps on: longer runs get there with smaller
  steps. It is halved where a whole detector is given, not only a backbone.
* A small set cannot teach early filters what their weights do not know already: they are frozen.
* Objects are rescaled the more widely the more often the images are seen: a scale that is met once
  is not learned.
"""

from __future__ import annotations

from typing import Any

from engine.config.fields import ConfigError

NAME = "finetune"
# Assumed where a run is given minutes: its steps are not known before it runs. What is derived
# changes little if it is out by a factor of three.
_STEPS_PER_MINUTE = 60
_WINDOW_SHARE = 0.05
_LONGEST_WARMUP = 1000  # steps
_SHORT_RUN = 1000  # steps
# Passes over the set -> least and largest scale.
_SCALES = ((40, (0.8, 1.25)), (150, (0.5, 1.5)))
_WIDEST_SCALES = (0.1, 2.0)
# Images below which a set is small, or of middle size.
SMALL_SET, MIDDLE_SET = 1000, 10000


def require_weights(config: Any) -> None:
    """Raises ConfigError if the run starts from no weights."""
    if not (config.train.backbone_init or config.train.pretrained_ckpt):
        raise ConfigError(
            f"--recipe={NAME} starts from weights: name them with --pretrained_ckpt or "
            "--backbone_init, or train without this recipe"
        )


def shared_settings(
    config: Any,
    *,
    num_images: int,
    num_ranks: int,
    base_rate: float,
) -> dict[str, Any]:
    """Returns the overrides that all families take.

    Args:
      config: of the run, without the recipe: its batch, length and weights count.
      num_images: of the training set.
      num_ranks: that will train.
      base_rate: of a short run that starts from a backbone, for a global batch of 4.

    Raises:
      ConfigError: the run starts from no weights.
    """
    require_weights(config)
    train, optim = config.train, config.optim
    global_batch = train.batch_size * num_ranks * optim.gradient_accumulation
    per_epoch = -(-(train.num_examples_per_epoch or num_images) // global_batch)
    steps = train.num_epochs * per_epoch
    if train.train_minutes:
        steps = max(round(min(steps, train.train_minutes * _STEPS_PER_MINUTE)), 1)
    window = max(steps * _WINDOW_SHARE, 10.0)
    rate = base_rate * (global_batch / 4) ** 0.5 * min(_SHORT_RUN / steps, 1.0) ** 0.25
    passes = steps * global_batch / num_images
    scales = next((scales for most, scales in _SCALES if passes < most), _WIDEST_SCALES)
    return {
        "model.bn_momentum": _rounded(1.0 - 4.0 / window, 0.8, 0.99),
        "data.jitter_min": scales[0],
        "data.jitter_max": scales[1],
        "optim.optimizer": "adamw",
        "optim.weight_decay": 4e-4,
        "optim.learning_rate": float(f"{rate * (0.5 if train.pretrained_ckpt else 1.0):.2g}"),
        "optim.lr_batch_size": 0,
        "optim.lr_warmup_epoch": round(min(window, _LONGEST_WARMUP) / per_epoch, 3),
        "optim.lr_decay_method": "cosine",
        "optim.moving_average_decay": _rounded(1.0 - 1.0 / window, 0.9, 0.9998),
    }


def _rounded(value: float, least: float, most: float) -> float:
    return round(min(max(value, least), most), 4)
