#!/usr/bin/env bash
# What get_coco.sh and get_coco2014.sh have in common: their arguments and variables, downloads that
# resume and are checked, unpacking that appears whole, disk space. Not a command: it is sourced,
# and reads repository and INCLUDE_MASKS of the script that does.
# shellcheck disable=SC2154

# Before bash 4.4 an empty list counts as unset.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || set +u

program="$(basename "$0" .sh)"

if [[ "${1:-}" == "-h" || "${1:-}" == "--help" ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
fi
if [[ $# -gt 0 && "$1" != -* ]]; then
  DATA_DIR="$1"
  shift
fi
DATA_DIR="${DATA_DIR:-/workspace/coco}"
KEEP_IMAGES="${KEEP_IMAGES:-0}"
KEEP_ZIPS="${KEEP_ZIPS:-0}"
NUM_THREADS="${NUM_THREADS:-}"
COCO_URL="${COCO_URL:-http://images.cocodataset.org}"
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="$repository/.venv/bin/python"
  [[ -x "$PYTHON" ]] || PYTHON=python3
fi

say() { printf '%s %s: %s\n' "$(date +%H:%M:%S)" "$program" "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

is_true() { [[ "$1" == 1 || "$1" == true || "$1" == True || "$1" == yes ]]; }

converter_flags=()
if is_true "$INCLUDE_MASKS"; then converter_flags+=(--include_masks); fi
if [[ -n "$NUM_THREADS" ]]; then converter_flags+=(--num_threads="$NUM_THREADS"); fi
converter_flags+=("$@")

mkdir -p "$DATA_DIR"
[[ -w "$DATA_DIR" ]] || die "$DATA_DIR cannot be written: choose another DATA_DIR"

# annotations_complete NAME ...: their instances files are there.
annotations_complete() {
  local name
  for name in "$@"; do
    [[ -s "$DATA_DIR/annotations/instances_$name.json" ]] || return 1
  done
}

# is_complete PREFIX: one of the sets that complete_sets found.
is_complete() { [[ " ${complete//$'\n'/ } " == *" $1 "* ]]; }

# complete_sets PREFIX ...: those that have a card, all of its shards, and masks if asked for.
complete_sets() {
  local masks=""
  if is_true "$INCLUDE_MASKS"; then masks=masks; fi
  PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" - "$DATA_DIR" "$masks" "$@" <<'EOF'
import sys

from object_detection.records.card import find_card

folder, masks, *prefixes = sys.argv[1:]
for prefix in prefixes:
    try:
        card = find_card(f"{folder}/{prefix}-*.tfrecord")
    except (FileNotFoundError, ValueError):
        continue
    if card is not None and (card.has_masks or not masks):
        print(prefix)
EOF
}

# check_disk_space GIGABYTES
check_disk_space() {
  local needed="${MIN_FREE_GB:-$1}" free
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

# fetch_folder FOLDER NAME URL MD5: what an archive holds.
fetch_folder() {
  fetch "$2" "$3" "$4"
  unpack "$2" "$1"
}

# fetch NAME URL MD5: leaves a checked $DATA_DIR/NAME. An archive carries its final
# name only once its checksum was right.
fetch() {
  local archive="$DATA_DIR/$1" url="$2" md5="$3" status=0
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
  [[ -s "$archive.partial" ]] || die "download of $url failed (status $status): check ${address_variables:-COCO_URL}"
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
  if [[ "$1" == *.zip ]]; then
    "$PYTHON" -m zipfile -e "$DATA_DIR/$1" "$staging"
  else
    mkdir -p "$staging"
    tar -xf "$DATA_DIR/$1" -C "$staging"
  fi
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

# make_records IMAGES MD5 ANNOTATIONS PREFIX NUM_SHARDS: from a folder of images, fetched if need be.
make_records() {
  if [[ ! -d "$DATA_DIR/$1" ]]; then
    fetch_folder "$1" "$1.zip" "$COCO_URL/zips/$1.zip" "$2"
  fi
  "$PYTHON" "$repository/dataset/create_coco_tfrecord.py" --image_dir="$DATA_DIR/$1" \
    --object_annotations_file="$DATA_DIR/annotations/instances_$3.json" \
    --output_file_prefix="$4" --num_shards="$5" "${converter_flags[@]}"
}

# remove_images FOLDER: only what was unpacked here, never a folder that was there before.
remove_images() {
  if ! is_true "$KEEP_IMAGES" && [[ -f "$DATA_DIR/$1/.from_get_coco" ]]; then
    say "removing $DATA_DIR/$1 (KEEP_IMAGES=1 keeps it)"
    rm -rf "${DATA_DIR:?}/$1"
  fi
}
