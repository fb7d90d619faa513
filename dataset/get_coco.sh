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

if [[ "${1:-}" == "-h" || "${1:-}" == "--help" ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 0
fi
if [[ $# -gt 0 && "$1" != -* ]]; then
  DATA_DIR="$1"
  shift
fi

DATA_DIR="${DATA_DIR:-/workspace/coco}"
INCLUDE_MASKS="${INCLUDE_MASKS:-0}"
KEEP_IMAGES="${KEEP_IMAGES:-0}"
KEEP_ZIPS="${KEEP_ZIPS:-0}"
NUM_THREADS="${NUM_THREADS:-}"
TRAIN_SHARDS="${TRAIN_SHARDS:-256}"
VAL_SHARDS="${VAL_SHARDS:-32}"
COCO_URL="${COCO_URL:-http://images.cocodataset.org}"
MD5_TRAIN="${MD5_TRAIN:-cced6f7f71b7629ddf16f17bbcfab6b2}"
MD5_VAL="${MD5_VAL:-442b8da7639aecaf257c1dceb8ba8c80}"
MD5_ANNOTATIONS="${MD5_ANNOTATIONS:-f4bbac642086de4f52a3fdda2de5fa2c}"
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="$repository/.venv/bin/python"
  [[ -x "$PYTHON" ]] || PYTHON=python3
fi

# shellcheck source=dataset/coco_files.sh
source "$repository/dataset/coco_files.sh"

annotations_complete() {
  [[ -s "$DATA_DIR/annotations/instances_train2017.json" &&
    -s "$DATA_DIR/annotations/instances_val2017.json" ]]
}

# gigabytes_needed: disk space of the steps that remain, from the sizes of COCO 2017. Images and
# their archive, or images and records, lie side by side.
gigabytes_needed() {
  local needed=0
  annotations_complete || needed=$((needed + 2))
  "$val_complete" || needed=$((needed + 2))
  "$train_complete" || needed=$((needed + 39))
  if is_true "$KEEP_ZIPS" && [[ "$needed" -gt 0 ]]; then needed=$((needed + 20)); fi
  echo "$needed"
}

# make_records SPLIT YEAR_FOLDER NUM_SHARDS MD5 [flags ...]
make_records() {
  local split="$1" folder="$2" num_shards="$3" md5="$4"
  shift 4
  if [[ ! -d "$DATA_DIR/$folder" ]]; then
    fetch "$folder.zip" "$COCO_URL/zips/$folder.zip" "$md5"
    unpack "$folder.zip" "$folder"
  fi
  "$PYTHON" "$repository/dataset/create_coco_tfrecord.py" \
    --image_dir="$DATA_DIR/$folder" \
    --object_annotations_file="$DATA_DIR/annotations/instances_$folder.json" \
    --output_file_prefix="$DATA_DIR/$split" --num_shards="$num_shards" "$@"
  # Only images that were unpacked here are removed, never a folder that was there before.
  if ! is_true "$KEEP_IMAGES" && [[ -f "$DATA_DIR/$folder/.from_get_coco" ]]; then
    say "removing $DATA_DIR/$folder (KEEP_IMAGES=1 keeps it)"
    rm -rf "${DATA_DIR:?}/$folder"
  fi
}

converter_flags=()
if is_true "$INCLUDE_MASKS"; then converter_flags+=(--include_masks); fi
if [[ -n "$NUM_THREADS" ]]; then converter_flags+=(--num_threads="$NUM_THREADS"); fi
converter_flags+=("$@")

mkdir -p "$DATA_DIR"
[[ -w "$DATA_DIR" ]] || die "$DATA_DIR cannot be written: choose another DATA_DIR"
complete="$(complete_sets train val)"
train_complete=false
val_complete=false
if [[ "$complete" == *train* ]]; then train_complete=true; fi
if [[ "$complete" == *val* ]]; then val_complete=true; fi

if annotations_complete && "$train_complete" && "$val_complete"; then
  say "nothing to do: $DATA_DIR is complete"
  exit 0
fi
check_disk_space "$(gigabytes_needed)"

if ! annotations_complete; then
  fetch annotations_trainval2017.zip "$COCO_URL/annotations/annotations_trainval2017.zip" \
    "$MD5_ANNOTATIONS"
  unpack annotations_trainval2017.zip annotations
fi
# The small split first, so that whatever is wrong shows early.
if ! "$val_complete"; then
  make_records val val2017 "$VAL_SHARDS" "$MD5_VAL" "${converter_flags[@]}"
fi
if ! "$train_complete"; then
  make_records train train2017 "$TRAIN_SHARDS" "$MD5_TRAIN" "${converter_flags[@]}"
fi
say "complete: $DATA_DIR/train-*, $DATA_DIR/val-*, $DATA_DIR/annotations"
