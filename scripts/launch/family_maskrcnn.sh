# shellcheck shell=bash disable=SC2034,SC2154
# What Mask R-CNN's runs have of their own. Sourced by scripts/launch.sh; kinds.sh asks for these names.
#
# Whose conventions a recipe has its name says: tf2_* is of NVIDIA's program for TensorFlow 2, e2e_* of its program for
# PyTorch, in that program's own form; all others are ours.

# reduced_mb: bytes of one gradient, MB. example_run: a run that can be drawn with. model_flags: the model of a
# checkpoint that does not say it.
set_family() {
  reduced_mb=170
  # The reference for TensorFlow 2 takes 200 steps and leaves the first 100 out, that for PyTorch times all of 500.
  benchmark_flags=(--benchmark_steps=200 --log_warmup_steps=100)
  preset=${PRESET-}
  model_flags=(--model_name=maskrcnn-r50-fpn)
  # As many calls before the timed ones as the reference for TensorFlow 2.
  inference_benchmark_flags=("${model_flags[@]}" "--preset=$preset" --warmup_runs=100 --bm_runs=100)
  example_run=maskrcnn-convergence-AMP-8xA100-80G-tf2
  find_backbone rn50_tf_amp_ckpt_v20.06.0/nvidia_rn50_tf_amp
}

# Sets recipe_flags (what train.py is told of the recipe), preset, and what else depends on whose recipe it is.
read_recipe() {
  case ${recipe_file##*/} in
    tf2_*) preset=${PRESET-nvidia_tf2} ;;
    e2e_*)
      preset=${PRESET-nvidia_pytorch}
      read_pytorch_recipe
      return
      ;;
  esac
  recipe_flags=("${model_flags[@]}" "--recipe=$recipe_file")
}

# The files name the images of all GPUs together; other numbers of GPUs keep the share of each, as in all other recipes.
read_pytorch_recipe() {
  local batch
  # They do not say the precision; the names of the scripts do.
  case $name in
    *-AMP-*) AMP=${AMP:-True} ;;
    *-FP32-* | *-TF32-*) AMP=${AMP:-False} ;;
  esac
  batch=$(share_of SOLVER)
  benchmark_flags=(--benchmark_steps=500)
  find_backbone R-50.pkl
  # Without a backbone (in a benchmark) there is none, whatever the file names.
  recipe_flags=("--config_file=$recipe_file" "--batch_size=$batch" --backbone_init=)
}

# The images of each GPU of those that a section of a PyTorch recipe names for all.
share_of() {
  local images
  images=$(recipe_value IMS_PER_BATCH "$1") || exit
  [ $((images % gpus)) = 0 ] || fail "$recipe_file: IMS_PER_BATCH: $images of $1 is no multiple of the $gpus GPUs"
  printf '%s' $((images / gpus))
}

evaluation_batch() {
  case ${recipe_file##*/} in
    e2e_*) share_of TEST ;;
    *) recipe_value eval_batch_size ;;
  esac
}
