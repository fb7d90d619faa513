#!/usr/bin/env bash
# Times 200 training steps of Mask R-CNN on NGPU (8) H200 141 GB, mixed precision, BS images per GPU.
# Ours, not from the references. Not run yet.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe coco_8xh200_amp --gpus 8 -- "$@"
