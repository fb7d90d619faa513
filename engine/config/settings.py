"""The settings that every model family shares, by owner. Defaults stand here and nowhere else.

Names are those of the EfficientDet reference (arXiv 1911.09070 and its TensorFlow ports); a field's
flag or second key is given where theirs differs. Units are in the name or in the help text.
"""

from __future__ import annotations

import dataclasses
from typing import Optional

from engine.config.fields import Section, setting


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Training input: which records, how they are shuffled, augmented and bounded."""

    training_file_pattern: str = setting("", "Glob of the training records.")
    num_classes: Optional[int] = setting(
        None,
        "Class channels of the model; none: the data card's classes.",
        flag=None,
        least=1,
        most=100_000,
    )
    class_ids: str = setting(
        "contiguous",
        "contiguous: the card's classes in order; category_id: channel k is category id k + 1.",
        choices=("contiguous", "category_id"),
    )
    label_map: str = setting(
        "",
        "Class names: coco, voc, waymo or a YAML file {category id: name}; '': the data card's.",
    )
    max_instances_per_image: int = setting(100, "Rows for boxes per image.", least=1)
    on_overflow: str = setting(
        "truncate",
        "More boxes than rows: truncate (drop the smallest) or error.",
        choices=("truncate", "error"),
    )
    on_bad_record: str = setting(
        "skip", "Undecodable image or record: skip (counted) or error.", choices=("skip", "error")
    )
    max_bad_records: int = setting(
        100, "Most records skipped on a rank before the run ends.", least=0
    )
    skip_crowd_during_training: bool = setting(True, "Leave crowd regions out of training.")
    input_rand_hflip: bool = setting(True, "Mirror half of the training images.")
    jitter_min: float = setting(
        0.1, "Least scale of the image relative to the network input.", above=0
    )
    jitter_max: float = setting(
        2.0, "Largest scale of the image relative to the network input.", above=0
    )
    color_jitter: float = setting(
        0.0, "Strength of brightness, contrast and saturation changes.", least=0, most=1
    )
    translate: float = setting(
        0.0,
        "Shift training images by up to this share of the network input, in all directions; at "
        "most that share of what is visible leaves it.",
        least=0,
        most=0.9,
    )
    mosaic: float = setting(
        0.0, "Share of training images that are put together of four.", least=0, most=1
    )
    mixup: float = setting(
        0.0, "Share of training images that are blended with another.", least=0, most=1
    )
    mixing_end_epoch: int = setting(
        0,
        "Passes over the training set after which there is no mosaic and no mixup; 0: no such end.",
        least=0,
    )
    autoaugment: str = setting(
        "",
        "Policy of AutoAugment for detection, v0 to v3; '': none.",
        choices=("", "v0", "v1", "v2", "v3"),
    )
    shuffle_buffer: int = setting(5000, "Encoded records in the shuffle buffer of a rank.", least=1)
    cache_records: Optional[bool] = setting(
        None, "Hold encoded records in memory; none: if they take under 1 GB."
    )
    canvas_size: int = setting(
        0, "Side of the decoded region sent to the device, pixels; 0: 1.25 x the input.", least=0
    )
    resize_on: str = setting(
        "auto",
        "host, device or auto: where images are resized.",
        choices=("auto", "host", "device"),
    )
    input_threads: int = setting(
        0, "tf.data threads of a rank; 0: the cores available to it.", least=0
    )
    prefetch_batches: int = setting(2, "Batches prepared ahead.", least=0)


@dataclasses.dataclass(frozen=True)
class OptimConfig(Section):
    """Optimizer, learning rate, averages; EfficientDet's defaults (arXiv 1911.09070, section 5)."""

    optimizer: str = setting("sgd", "sgd or adamw.", choices=("sgd", "adamw"))
    momentum: float = setting(0.9, "Momentum of SGD, beta 1 of AdamW.", least=0, below=1)
    momentum_follows_rate: bool = setting(
        False,
        "SGD's momentum is multiplied by the learning rate of the step, as in PyTorch; else each "
        "gradient in it by the rate of its own step, as in Keras.",
    )
    learning_rate: float = setting(
        0.08, "Learning rate after warm-up, for lr_batch_size images per step.", flag="lr", least=0
    )
    lr_batch_size: int = setting(
        64,
        "Global batch that learning_rate is meant for: the rate used is lr * global batch / this. "
        "0: use the rate as it is (also when --lr is given without this flag).",
        least=0,
    )
    lr_warmup_init: float = setting(1e-4, "Learning rate at step 0.", flag="warmup_value", least=0)
    lr_warmup_epoch: float = setting(
        1.0, "Length of the warm-up, epochs.", flag="warmup_epochs", least=0, most=1e6
    )
    lr_warmup_method: str = setting(
        "linear",
        "linear: from warmup_value to the rate; constant: warmup_value all along.",
        choices=("linear", "constant"),
    )
    lr_decay_method: str = setting(
        "cosine", "cosine, stepwise or polynomial.", choices=("cosine", "stepwise", "polynomial")
    )
    lr_step_epochs: tuple[float, ...] = setting(
        (200.0, 250.0), "stepwise: epochs where the rate drops.", least=0
    )
    lr_step_factor: float = setting(0.1, "stepwise: factor at each drop.", above=0)
    lr_poly_power: float = setting(
        0.9, "polynomial: exponent of the remaining share of steps.", above=0
    )
    clip_gradients_norm: float = setting(
        10.0, "Limit of each gradient's norm, then of the global norm; 0: off.", least=0
    )
    weight_decay: float = setting(
        4e-5, "Factor of 0.5*|w|^2 over kernels (SGD), decoupled for AdamW.", least=0
    )
    moving_average_decay: Optional[float] = setting(
        0.9998, "Decay of the weights' moving average; 0 or none: no average.", least=0, below=1
    )
    var_freeze_expr: str = setting(
        "", "Regular expression matched at the start of names of variables to freeze."
    )
    loss_scale: float = setting(32768.0, "First dynamic loss scale under mixed_float16.", least=1)
    gradient_accumulation: int = setting(1, "Batches per optimizer step on each rank.", least=1)
    adam_beta2: float = setting(0.999, "AdamW's second beta.", least=0, below=1)
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon.", above=0)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Length, place and habits of a run."""

    model_dir: str = setting("", "Folder of the run: checkpoints, logs, configuration.")
    training_mode: str = setting(
        "full",
        "full: num_epochs, evaluated from epoch 200 on (from the start if it ends before). The "
        "reference's modes: traineval: the same, but ends at epoch 300; train: to 75% of "
        "num_epochs, at most 300, evaluated at the end; train300: to 300, not evaluated.",
        choices=("full", "train", "traineval", "train300"),
    )
    batch_size: int = setting(
        64,
        "Images per rank and step; as a flag also auto: the most that fit into memory.",
        least=1,
        auto=True,
    )
    num_epochs: int = setting(
        300, "Epochs to train, which the learning-rate schedule spans.", least=1
    )
    stop_epoch: int = setting(0, "Epoch to stop after; 0: by training_mode.", least=0)
    train_minutes: float = setting(
        0.0,
        "Train for this many minutes, the schedule fitted to the time left; 0: by num_epochs.",
        least=0,
    )
    num_examples_per_epoch: int = setting(
        0, "Images per epoch; 0: the number in the data card.", least=0
    )
    checkpoint_period: int = setting(10, "Epochs between checkpoints.", least=1)
    checkpoint_minutes: float = setting(
        20.0, "Also save when this many minutes passed since the last save; 0: off.", least=0
    )
    keep_checkpoints: int = setting(
        3, "Resumable checkpoints and averaged checkpoints kept; 0: all.", least=0
    )
    backbone_init: str = setting(
        "",
        "Backbone weights (SavedModel folder, TF checkpoint, .h5, torch file, pip:NAME, zoo:NAME).",
    )
    pretrained_ckpt: str = setting(
        "", "Detector weights to start from, or zoo:NAME, at step 0; not a resume."
    )
    allow_config_change: bool = setting(
        False, "Resume although the configuration in model_dir differs."
    )
    allow_rank_change: bool = setting(
        False,
        "Resume on another number of ranks with the same global batch, order of data and schedule: "
        "each rank accumulates the batches of several.",
    )
    seed: Optional[int] = setting(
        None,
        "Seed of weights, data order and augmentation; none: a fresh one, logged.",
        least=0,
        most=2**31 - 1,
    )
    benchmark: bool = setting(False, "Time benchmark_steps steps; no evaluation, no checkpoints.")
    benchmark_steps: int = setting(100, "Steps of a benchmark.", least=1)
    use_fake_data: bool = setting(False, "Repeat the first batch for ever.")
    log_filename: str = setting("time_log.txt", "DLLogger file inside model_dir.")
    log_steps: int = setting(1, "Steps between records in the log files.", least=1)
    log_warmup_steps: int = setting(1, "First steps left out of the average speed.", least=0)
    console_seconds: float = setting(5.0, "Least seconds between console lines.", least=0)
    lr_tb: bool = setting(False, "Write the learning rate of every logged step to TensorBoard.")
    time_history: bool = setting(
        True, "Write throughput records: DLLogger's PARAMETER lines and TensorBoard's examples/sec."
    )
    profile_steps: int = setting(
        0, "Record so many steps, from the 11th on, with TensorFlow's profiler; 0: none.", least=0
    )
    loggers: tuple[str, ...] = setting(
        (), "Outside loggers that get the run's numbers and report: wandb, mlflow."
    )
    hooks: tuple[str, ...] = setting(
        (), "MODULE:NAME or FILE.py:NAME of subclasses of engine.log.hooks.Hook, called by the run."
    )
    validate: bool = setting(False, "Compute the validation losses after every epoch.")
    skip_test: bool = setting(False, "Never evaluate; a target AP is then an error.")
    debug: bool = setting(
        False,
        "Run eagerly, stop at the first operation whose result is not finite, log where each runs, "
        "seed 111111 unless --seed is given; slow.",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig(Section):
    """What is evaluated and when."""

    val_file_pattern: str = setting("", "Glob of the validation records.")
    val_json_file: str = setting("", "COCO annotations of the validation images.")
    eval_batch_size: int = setting(64, "Images per rank and evaluation step.", least=1)
    eval_samples: int = setting(5000, "Most images evaluated.", least=1)
    skip_eval: bool = setting(
        False, "Write the detections and compute no metrics (eval.py).", flag=None
    )
    eval_start: int = setting(0, "First epoch with an evaluation; 0: by training_mode.", least=0)
    eval_period: int = setting(0, "Epochs between evaluations; 0: checkpoint_period.", least=0)
    target_ap: float = setting(0.0, "Stop when AP reaches this; 0: off.", least=0, most=1)
    testdev_dir: str = setting(
        "",
        "Folder for a COCO test-dev submission file; val_json_file may then lack annotations.",
    )
    max_detections: int = setting(
        100,
        "Best detections of an image and class that are scored (COCO: 100), and most of an image "
        "that the model gives, unless it is told to give more.",
        least=10,
    )
    best_metric: str = setting(
        "AP",
        "What the best checkpoint is best at, and patience watches: AP, AP50, mask_AP, another of "
        "an evaluation's numbers, or a class for its AP.",
    )
    patience: int = setting(
        0, "Stop after so many evaluations without a new best of best_metric; 0: off.", least=0
    )
    min_delta: float = setting(
        0.0, "Least gain of best_metric that counts as new best for patience.", least=0, most=1
    )
    report: bool = setting(True, "Write report.html with every evaluation.")
    report_score: float = setting(
        0.0,
        "Least score of detections that a report counts and draws; 0: where F1 is largest.",
        least=0,
        most=1,
    )
    report_iou: float = setting(
        0.5, "Least IoU of a detection with what it found, in a report.", least=0.11, most=1
    )
    report_images: int = setting(16, "Most images that a report draws, the worst first.", least=0)
    coco_scorer: str = setting(
        "auto",
        "pycocotools, hotcoco, ultrafast_pycocotools or auto.",
        choices=("auto", "pycocotools", "hotcoco", "ultrafast_pycocotools"),
    )

    def most_detections(self, of_model: int) -> int:
        """Returns how many detections of an image a model gives, where it is set to `of_model`."""
        is_raised = self.max_detections > EvalConfig.max_detections
        return max(of_model, self.max_detections) if is_raised else of_model


@dataclasses.dataclass(frozen=True)
class RuntimeConfig(Section):
    """Precision, compilation, processes."""

    amp: Optional[bool] = setting(
        None,
        "mixed_float16 with dynamic loss scaling; none: where there is an accelerator.",
        key="mixed_precision",
    )
    precision: str = setting(
        "",
        "float32, mixed_float16 or mixed_bfloat16; '': by --amp.",
        choices=("", "float32", "mixed_float16", "mixed_bfloat16"),
    )
    use_xla: Optional[bool] = setting(
        None,
        "Compile forward, backward and update with XLA; none: where there is an accelerator.",
    )
    compile_ahead: bool = setting(
        True,
        "With XLA and several canvases, compile the step for all of them before the first step, "
        "side by side; else each when a batch needs it.",
    )
    fp16_compression: Optional[bool] = setting(
        None, "Reduce gradients in float16; none: as --precision says."
    )
    sync_bn: bool = setting(
        False, "Batch-norm statistics over all ranks (turns XLA off for the step)."
    )
    deterministic: bool = setting(
        False,
        "Use only kernels whose results do not vary between runs of the same seed; slower on a "
        "GPU, without effect on a CPU with XLA off.",
    )
    remat: bool = setting(False, "Recompute backbone blocks in the backward pass to save memory.")
    set_num_threads: bool = setting(True, "Share this host's cores among its ranks.")
    enable_map_parallelization: bool = setting(True, "Let tf.data parallelise maps by itself.")
    min_free_gb: float = setting(
        1.0, "Least free disk space in model_dir at the start, GB.", least=0
    )
    lock_seconds: float = setting(
        45.0,
        "A run in the same model_dir that gives no sign of life for so long is taken for dead; 0: "
        "several runs may write there.",
        least=0,
    )
    heartbeat_seconds: float = setting(
        60.0,
        "A rank that gives no sign of life for so long, or five times so long while it compiles or "
        "evaluates, is named, and the job ends; 0: nobody watches.",
        least=0,
    )
    stall_seconds: float = setting(
        900.0,
        "Longest stay at one place of a training step before the job ends; 0: no limit.",
        least=0,
    )
    compile_seconds: float = setting(
        3600.0, "The same for the start of a run and its first step; 0: no limit.", least=0
    )
    evaluation_seconds: float = setting(
        7200.0,
        "The same for a batch or the scores of an evaluation, a save, an export; 0: no limit.",
        least=0,
    )
