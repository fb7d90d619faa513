#!/usr/bin/env bash
# Fetches COCO 2017 and converts it to record sets ready for training and evaluation.
#
# Usage: dataset/get_coco.sh [DATA_DIR] [flags of create_coco_tfrecord.py ...]
#
# Result in DATA_DIR:
#   train-00000-of-00256.tfrecord ... train-card.json
#   val-00000-of-00032.tfrecord ...   val-card.json
#   annotations/instances_{train,val}2017.json and the other annotation files
#
# Every step is skipped if its result is there, so after an interruption the same command goes on
# where it stopped; downloads resume in the middle of a file.
#
# Variables (default):
#   DATA_DIR       where everything goes (/workspace/coco)
#   INCLUDE_MASKS  1: store instance masks too (0)
#   KEEP_IMAGES    1: keep train2017/ and val2017/ after conversion (0)
#   KEEP_ZIPS      1: keep the downloaded archives (0)
#   NUM_THREADS    conversion processes (one for each core)
#   TRAIN_SHARDS, VAL_SHARDS   numbers of record files (256, 32)
#   COCO_URL       where archives come from; http://, https:// or file:// (COCO's own server)
#   MIN_FREE_GB    free disk space asked for at the start (what the missing steps need)
#   MD5_TRAIN, MD5_VAL, MD5_ANNOTATIONS   checksums of the three archives (COCO's)
#   PYTHON         interpreter (.venv/bin/python of this repository, else python3)

set -euo pipefail

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

INCLUDE_MASKS="${INCLUDE_MASKS:-0}"
TRAIN_SHARDS="${TRAIN_SHARDS:-256}"
VAL_SHARDS="${VAL_SHARDS:-32}"
MD5_TRAIN="${MD5_TRAIN:-cced6f7f71b7629ddf16f17bbcfab6b2}"
MD5_VAL="${MD5_VAL:-442b8da7639aecaf257c1dceb8ba8c80}"
MD5_ANNOTATIONS="${MD5_ANNOTATIONS:-f4bbac642086de4f52a3fdda2de5fa2c}"
# shellcheck source=dataset/coco_files.sh
source "$repository/dataset/coco_files.sh"

# gigabytes_needed: disk space of the steps that remain, from the sizes of COCO 2017. Images and
# their archive, or images and records, lie side by side.
gigabytes_needed() {
  local needed=0
  annotations_complete train2017 val2017 || needed=$((needed + 2))
  is_complete val || needed=$((needed + 2))
  is_complete train || needed=$((needed + 39))
  if is_true "$KEEP_ZIPS" && [[ "$needed" -gt 0 ]]; then needed=$((needed + 20)); fi
  echo "$needed"
}

complete="$(complete_sets train val)"
if annotations_complete train2017 val2017 && is_complete train && is_complete val; then
  say "nothing to do: $DATA_DIR is complete"
  exit 0
fi
check_disk_space "$(gigabytes_needed)"

if ! annotations_complete train2017 val2017; then
  archive=annotations_trainval2017.zip
  fetch_folder annotations "$archive" "$COCO_URL/annotations/$archive" "$MD5_ANNOTATIONS"
fi
# The small split first, so that whatever is wrong shows early.
if ! is_complete val; then
  make_records val2017 "$MD5_VAL" val2017 "$DATA_DIR/val" "$VAL_SHARDS"
  remove_images val2017
fi
if ! is_complete train; then
  make_records train2017 "$MD5_TRAIN" train2017 "$DATA_DIR/train" "$TRAIN_SHARDS"
  remove_images train2017
fi
say "complete: $DATA_DIR/train-*, $DATA_DIR/val-*, $DATA_DIR/annotations"
