"""Names under which NVIDIA's two Mask R-CNN programs record numbers with DLLogger."""

from __future__ import annotations

_AS_THERE = (
    *("loss", "rpn_score_loss", "rpn_box_loss", "fast_rcnn_class_loss", "fast_rcnn_box_loss"),
    *("AP50", "AP75", "APs", "APm", "APl", "ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl"),
)

DLLOGGER_NAMES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in _AS_THERE},
    **{f"mask_{name}": (f"mask_{name}",) for name in _AS_THERE if name.startswith("A")},
    "mask_loss": ("mask_rcnn_loss",),
    "reg_l2_loss": ("l2_regularization_loss",),
    "images_per_second": ("train_throughput",),
    "step_seconds": ("train_latency",),
    **{f"step_seconds_p{q}": (f"train_latency_{q}",) for q in (90, 95, 99)},
    "seconds": ("train_time",),
    "AP": ("AP", "BBOX_mAP"),
    "mask_AP": ("mask_AP", "MASK_mAP"),
    "avg_fps_training": ("train_throughput", "train_perf_fps"),
    "avg_latency_training": ("train_latency",),
    "e2e_training_time": ("e2e_train_time",),
    "inference_fps": ("predict_throughput", "inference_perf_fps"),
    "latency_avg": ("predict_latency",),
    **{f"latency_{q}": (f"predict_latency_{q}",) for q in (90, 95, 99)},
}
"""Our name -> theirs."""
