# shellcheck shell=bash disable=SC2034,SC2154
# What each kind of run is: its program, its flags, where it writes. Sourced by scripts/launch.sh.
#
# Hyperparameters are in the recipes (FAMILY/configs/); here are only paths and what the references' variables mean. What
# differs between families is in family_FAMILY.sh.

# Sets program (words after the interpreter), output (the folder of results), is_parallel and stops_orderly (signals are
# answered by a save).
compose_program() {
  is_parallel=1 stops_orderly=0
  case $kind in
    convergence) compose_convergence ;;
    training-benchmark) compose_training_benchmark ;;
    evaluate) compose_evaluation ;;
    inference-benchmark) compose_inference_benchmark ;;
    inference) compose_inference ;;
    *) fail "unknown kind '$kind' of run" ;;
  esac
  program+=("${flags[@]}")
  # A folder told by a flag is where logs go too.
  case $kind in
    convergence | training-benchmark) output=$(given model_dir || printf '%s' "$output") ;;
    evaluate | inference) output=$(given output_dir || printf '%s' "$output") ;;
  esac
}

# The value that the user's flags give to a flag, as --NAME=VALUE or in two words; fails if they give none.
given() {
  local i value=''
  for ((i = 0; i < ${#flags[@]}; i++)); do
    case ${flags[i]} in
      "--$1="*) value=${flags[i]#*=} ;;
      "--$1") value=${flags[i + 1]:-} ;;
    esac
  done
  [ -n "$value" ] && printf '%s' "$value"
}

# Ends the launcher unless a variable or its flag says which run is read.
require_run() {
  [ -n "${!1:-}" ] || given "$2" >/dev/null ||
    fail "$1 is not set: name a checkpoint or the folder of a run, for example $1=$results_dir/$3"
}

validation_flags() {
  validation=(
    "--val_file_pattern=$data_dir/val-*"
    "--val_json_file=$data_dir/annotations/instances_val2017.json"
  )
}

compose_training() {
  find_recipe
  read_recipe
  validation_flags
  output=${MODEL_DIR:-$results_dir/$name}
  stops_orderly=1
  program=(
    train.py "${recipe_flags[@]}" "--preset=$preset" "--model_dir=$output"
    "--training_file_pattern=$data_dir/train-*" "${validation[@]}"
  )
  [ -z "${training_mode:-}" ] || program+=("--training_mode=$training_mode")
  [ -z "${BS:-}" ] || program+=("--batch_size=$BS")
  [ -z "${AMP:-}" ] || program+=("$(precision_flag "$AMP")")
}

# A file or folder, the prefix of a checkpoint's files, or what has no path.
has_backbone() { [ -e "$backbone" ] || [ -e "$backbone.index" ] || [[ $backbone == @(pip|zoo):* ]]; }

compose_convergence() {
  compose_training
  program+=("--backbone_init=$backbone")
  has_backbone || [ -n "$mounted" ] || [[ " ${flags[*]-}" == *" --"@(backbone_init|pretrained_ckpt)* ]] ||
    say "no weights at $backbone: BACKBONE_CKPT or checkpointdir names them, --backbone_init= (empty) starts without"
  # A job that Slurm has queued again may have got fewer nodes.
  [ -z "$in_slurm" ] || [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || program+=(--allow_rank_change)
}

# Speed does not depend on the weights: without a backbone they are random.
compose_training_benchmark() {
  compose_training
  if has_backbone; then program+=("--backbone_init=$backbone"); fi
  program+=(--benchmark "${benchmark_flags[@]}" --num_epochs=1)
}

compose_evaluation() {
  find_recipe
  read_recipe
  validation_flags
  local batch amp
  batch=${BS:-$(evaluation_batch)}
  amp=$(precision_flag "${AMP:-$(recipe_value amp)}")
  require_run CKPT ckpt_path "${name/evaluate/convergence}"
  output=$results_dir/$name
  program=(
    eval.py "${model_flags[@]}" "--ckpt_path=${CKPT:-}" "--preset=$preset" "--output_dir=$output" "${validation[@]}"
    "--batch_size=$batch" "$amp"
  )
}

compose_inference_benchmark() {
  is_parallel=0
  output=$results_dir/$name
  program=(
    -m benchmarks.inference "--batch_size=${BS:-8}" "$(precision_flag "${AMP:-True}")" --use_xla
    "${inference_benchmark_flags[@]}" "--results=$output/inference.csv" "--dllogger_path=$output/infer-benchmark.log"
  )
  [ -z "${CKPT:-}" ] || program+=("--model_dir=$CKPT")
  [ -z "${IMAGE_PATH:-}" ] || program+=("--image_path=$IMAGE_PATH")
}

compose_inference() {
  is_parallel=0
  output=$results_dir/$name
  require_run MODEL_DIR model_dir "$example_run"
  program=(
    infer.py "${model_flags[@]}" "--image_path=${IMAGE_PATH:-$root/testdata/img1.jpg}" "--output_dir=$output"
    "--preset=$preset" "--model_dir=${MODEL_DIR:-}"
  )
}
