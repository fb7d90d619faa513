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

say() { printf '%s get_coco: %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

is_true() { [[ "$1" == 1 || "$1" == true || "$1" == True || "$1" == yes ]]; }

# complete_splits: which of train and val have a card, all of its shards, and masks if asked for.
complete_splits() {
  local masks=""
  if is_true "$INCLUDE_MASKS"; then masks=masks; fi
  PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" - "$DATA_DIR" "$masks" <<'EOF'
import sys

from object_detection.data.card import find_card

folder, masks = sys.argv[1:]
for split in ("train", "val"):
    try:
        card = find_card(f"{folder}/{split}-*.tfrecord")
    except (FileNotFoundError, ValueError):
        continue
    if card is not None and (card.has_masks or not masks):
        print(split)
EOF
}

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

check_disk_space() {
  local needed="${MIN_FREE_GB:-$(gigabytes_needed)}" free
  free="$(df -Pk "$DATA_DIR" | awk 'NR == 2 { print int($4 / 1048576) }')"
  [[ "$free" -ge "$needed" ]] ||
    die "$DATA_DIR has $free GB free, $needed GB are needed: free some space, choose another" \
      "DATA_DIR, or set MIN_FREE_GB if you know better"
}

md5_matches() { [[ "$(md5sum <"$1" | cut -d ' ' -f 1)" == "$2" ]]; }

# transfer URL FILE: goes on where FILE ends.
transfer() {
  if command -v curl >/dev/null; then
    local quiet=(--silent --show-error)
    [[ -t 2 ]] && quiet=(--progress-bar)
    curl --fail --location --retry 5 --retry-delay 3 "${quiet[@]}" --continue-at - \
      --output "$2" "$1"
  elif command -v wget >/dev/null; then
    wget --continue --tries=5 --no-verbose --output-document="$2" "$1"
  else
    die "neither curl nor wget is installed"
  fi
}

# fetch NAME PATH_BELOW_COCO_URL MD5: leaves a checked $DATA_DIR/NAME. An archive carries its final
# name only once its checksum was right.
fetch() {
  local archive="$DATA_DIR/$1" url="$COCO_URL/$2" md5="$3" status=0
  if [[ -f "$archive" ]]; then
    say "checking $archive"
    md5_matches "$archive" "$md5" && return
    die "$archive is not the file expected (md5 $md5): remove it and run again"
  fi
  say "downloading $url"
  transfer "$url" "$archive.partial" || status=$?
  # A server that cannot resume (curl 33) or a file already whole (HTTP 416) also end in an error.
  if [[ "$status" -ne 0 && -s "$archive.partial" ]] && ! md5_matches "$archive.partial" "$md5"; then
    if [[ "$status" -eq 33 ]]; then
      say "the server cannot resume: starting $1 from the beginning"
      rm -f "$archive.partial"
      status=0
      transfer "$url" "$archive.partial" || status=$?
    fi
    [[ "$status" -eq 0 ]] || die "download of $url stopped (status $status): run again to resume"
  fi
  [[ -s "$archive.partial" ]] || die "download of $url failed (status $status): check COCO_URL"
  if ! md5_matches "$archive.partial" "$md5"; then
    rm -f "$archive.partial"
    die "$url arrived with a wrong checksum (expected md5 $md5) and was removed: run again"
  fi
  mv "$archive.partial" "$archive"
}

# unpack ARCHIVE FOLDER: $DATA_DIR/FOLDER appears when all of it is unpacked. In a folder that was
# there already (annotations of your own) files of the archive are added or replaced.
unpack() {
  local staging="$DATA_DIR/.unpack-$2"
  rm -rf "$staging"
  say "unpacking $1"
  "$PYTHON" -m zipfile -e "$DATA_DIR/$1" "$staging"
  [[ -d "$staging/$2" ]] || die "$DATA_DIR/$1 holds no folder $2"
  if [[ -d "$DATA_DIR/$2" ]]; then
    cp -a "$staging/$2/." "$DATA_DIR/$2/"
  else
    touch "$staging/$2/.from_get_coco"
    mv "$staging/$2" "$DATA_DIR/$2"
  fi
  rm -rf "$staging"
  is_true "$KEEP_ZIPS" || rm -f "${DATA_DIR:?}/$1"
}

# make_records SPLIT YEAR_FOLDER NUM_SHARDS MD5 [flags ...]
make_records() {
  local split="$1" folder="$2" num_shards="$3" md5="$4"
  shift 4
  if [[ ! -d "$DATA_DIR/$folder" ]]; then
    fetch "$folder.zip" "zips/$folder.zip" "$md5"
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
complete="$(complete_splits)"
train_complete=false
val_complete=false
if [[ "$complete" == *train* ]]; then train_complete=true; fi
if [[ "$complete" == *val* ]]; then val_complete=true; fi

if annotations_complete && "$train_complete" && "$val_complete"; then
  say "nothing to do: $DATA_DIR is complete"
  exit 0
fi
check_disk_space

if ! annotations_complete; then
  fetch annotations_trainval2017.zip annotations/annotations_trainval2017.zip "$MD5_ANNOTATIONS"
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
