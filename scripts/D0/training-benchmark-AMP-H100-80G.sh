#!/usr/bin/env bash
# Times 500 training steps of EfficientDet-D0 on NGPU (8) H100 80 GB, mixed precision, with the data of the training.
# Ours, not from the references. Not run yet.
exec "$(dirname "$0")/../launch.sh" "$0" --recipe d0_coco_8xh100_amp --gpus 8 -- "$@"
