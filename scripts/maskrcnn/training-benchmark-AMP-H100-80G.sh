#!/usr/bin/env bash
# Times 200 training steps of Mask R-CNN on NGPU (8) H100 80 GB, mixed precision, BS images per GPU.
# Ours, not from the references. Not run yet.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe coco_8xh100_amp --gpus 8 -- "$@"
