# shellcheck shell=bash disable=SC2034,SC2154
# What EfficientDet's runs have of their own. Sourced by scripts/launch.sh; kinds.sh asks for these names.

# reduced_mb: bytes of one gradient, MB. example_run: a run that can be drawn with. model_flags: the model of a
# checkpoint that does not say it.
set_family() {
  reduced_mb=16
  benchmark_flags=(--benchmark_steps=500)
  preset=${PRESET-nvidia}
  model_flags=()
  inference_benchmark_flags=(--model_name=efficientdet-d0)
  example_run=convergence-AMP-8xA100-80G
  find_backbone efficientnet-b0-joc
}

# Sets recipe_flags: what train.py is told of the recipe. For H100 and H200 the reference has none: those are ours.
read_recipe() {
  case ${recipe_file##*/} in *_8xh[12]00_*) preset=${PRESET-} ;; esac
  recipe_flags=("--recipe=$recipe_file")
}

# The reference evaluates with the batch of the training.
evaluation_batch() { recipe_value batch_size; }
