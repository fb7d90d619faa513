#!/usr/bin/env bash
# Fetches COCO 2014 with the minival split and converts it to record sets with masks.
#
# Usage: dataset/get_coco2014.sh [DATA_DIR] [flags of create_coco_tfrecord.py ...]
#
# Result in DATA_DIR, where the data-set catalog expects it:
#   records/coco_2014_train-*, records/coco_2014_valminusminival-*, records/coco_2014_minival-*
#   annotations/instances_{train,val,minival,valminusminival}2014.json and the other annotations
#
# The images of train and valminusminival together are those of train2017, minival is val2017. Every
# step is skipped if its result is there; downloads resume in the middle of a file.
#
# Variables (default):
#   DATA_DIR       where everything goes (/workspace/coco)
#   INCLUDE_MASKS  0: store no instance masks (1)
#   KEEP_IMAGES    1: keep train2014/ and val2014/ after conversion (0)
#   KEEP_ZIPS      1: keep the downloaded archives (0)
#   NUM_THREADS    conversion processes (one for each core)
#   NUM_SHARDS     record files of each set (128)
#   COCO_URL       where archives come from; http://, https:// or file:// (COCO's own server)
#   MINIVAL_URL    the archive of the minival annotations (Detectron's server)
#   MIN_FREE_GB    free disk space asked for at the start (42)
#   MD5_TRAIN, MD5_VAL, MD5_ANNOTATIONS, MD5_MINIVAL   checksums of the four archives
#   PYTHON         interpreter (.venv/bin/python of this repository, else python3)

set -euo pipefail

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

INCLUDE_MASKS="${INCLUDE_MASKS:-1}"
NUM_SHARDS="${NUM_SHARDS:-128}"
MINIVAL_URL="${MINIVAL_URL:-https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz}"
MD5_TRAIN="${MD5_TRAIN:-0da8c0bd3d6becc4dcb32757491aca88}"
MD5_VAL="${MD5_VAL:-a3d79f5ed8d289b7a7554ce06a5782b3}"
MD5_ANNOTATIONS="${MD5_ANNOTATIONS:-0a379cfc70b0e71301e0f377548639bd}"
MD5_MINIVAL="${MD5_MINIVAL:-2d2b9d2283adb5e3b8d25eec88e65064}"
# shellcheck source=dataset/coco_files.sh
source "$repository/dataset/coco_files.sh"

# For the message about a download that failed.
# shellcheck disable=SC2034
address_variables="COCO_URL and MINIVAL_URL"
SPLITS=(minival valminusminival train)

mkdir -p "$DATA_DIR/records"
complete="$(complete_sets "${SPLITS[@]/#/records/coco_2014_}")"
missing=()
for split in "${SPLITS[@]}"; do
  is_complete "records/coco_2014_$split" || missing+=("$split")
done
if annotations_complete {train,val,minival,valminusminival}2014 && [[ ${#missing[@]} -eq 0 ]]; then
  say "nothing to do: $DATA_DIR is complete"
  exit 0
fi
check_disk_space 42

if ! annotations_complete {train,val}2014; then
  archive=annotations_trainval2014.zip
  fetch_folder annotations "$archive" "$COCO_URL/annotations/$archive" "$MD5_ANNOTATIONS"
fi
if ! annotations_complete {minival,valminusminival}2014; then
  fetch_folder annotations coco_annotations_minival.tgz "$MINIVAL_URL" "$MD5_MINIVAL"
fi
for split in "${missing[@]}"; do
  images=(val2014 "$MD5_VAL")
  if [[ "$split" == train ]]; then images=(train2014 "$MD5_TRAIN"); fi
  make_records "${images[@]}" "${split}2014" "$DATA_DIR/records/coco_2014_$split" "$NUM_SHARDS"
done
remove_images val2014
remove_images train2014
say "complete: $DATA_DIR/records/coco_2014_*, $DATA_DIR/annotations"
