#!/usr/bin/env bash
# Writes what CKPT=... (a checkpoint or the folder of a run) finds on COCO val2017, boxes and masks as JSON, without
# scores, on one GPU: the inference of both references, of which that for TensorFlow 2 writes nothing.
exec "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" maskrcnn evaluate \
  --name maskrcnn-inference-val2017 --recipe tf2_coco_8xa100_amp --gpus 1 -- --skip_eval "$@"
