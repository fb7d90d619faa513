#!/usr/bin/env bash
# Trains Mask R-CNN R-50-FPN on COCO 2017 with 8 V100 16 GB, single precision.
# The PyTorch reference reports: AP 0.377, mask AP 0.342, 6.35 hours, 62.7 images/s (of its training benchmark).
# Its revision of 2019: 4 images per GPU; the APs are means of five seeds.
export AMP=${AMP:-False}
exec "$(dirname "$0")/../launch.sh" "$0" --recipe e2e_mask_rcnn_R_50_FPN_1x_2019 --gpus 8 -- "$@"
