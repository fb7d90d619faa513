#!/usr/bin/env bash
# From a fresh clone to a detector that works: installs what is needed, then runs scripts/quickstart.py.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

usage() {
  cat <<'USAGE'
Usage: ./quickstart.sh [options]

Makes the Python environment (.venv, the first time), prepares a data set, trains a detector with two Horovod ranks,
evaluates it, draws its detections on images it was not trained on, and prints where everything is.
Without options: a small generated data set and at most 10 minutes on 2 CPU cores after installation.
Run it again and it reuses what is there.

  --data DIR         train on this folder instead: images with COCO, YOLO, VOC, CVAT, LabelMe, Label Studio,
                     Create ML, VIA, Supervisely or Open Images annotations (docs/data.md)
  --model NAME       the model: efficientdet-lite0 (default), maskrcnn, or any other that train.py knows
                     (EfficientDet: with weights, -- --backbone_init=FILE or -- --pretrained_ckpt=FILE)
  --minutes N        length of the training (default 7; with --data, or Mask R-CNN from scratch, 25)
  --output DIR       where the results go (default: quickstart/<name of the data>-<model>)
  --generate N M     pictures of the generated set to train on and to hold out (default 400 80)
  --image_size N     network input in pixels       --batch_size N   images per rank and step
  --ranks N          Horovod ranks                 --pictures N     held-out images to draw
  --exif apply           turn pictures by their EXIF orientation    --follow_links   read links out of the image folder
  --train_split S, --eval_split S                  --seed N
  --on_data_error report  go on where the check of the data finds hopeless boxes
  --on_orphan_annotation skip  leave out annotations whose image or category is not listed
  --max_image_pixels N         height times width beyond which a picture is not decoded
  -- FLAGS           further flags for train.py
  --help             this text

`.venv/bin/python scripts/quickstart.py --help`, once the environment is there, tells the defaults. What is installed
is chosen with the variables that `scripts/setup_env.sh --help` names.
USAGE
}

for argument in "$@"; do
  case $argument in
    -h | --help)
      usage
      exit 0
      ;;
  esac
done

"$root/scripts/setup_env.sh"
exec "${RINGDET_VENV:-$root/.venv}/bin/python" "$root/scripts/quickstart.py" "$@"
