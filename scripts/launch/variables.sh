# shellcheck shell=bash disable=SC2034,SC2154
# Folders of a run, and the variables that its ranks start with. Sourced by scripts/launch.sh.
#
# Nothing that the user has set is changed.

# Sets python, data_dir, checkpoints, results_dir, in_slurm, in_container.
find_place() {
  python=${PYTHON:-}
  if [ -z "$python" ]; then
    python=${RINGDET_VENV:-$root/.venv}/bin/python
    if [ ! -x "$python" ] || [ -n "${CONTAINER_IMAGE:-}" ]; then python=python3; fi
  fi
  case $python in */*) PATH=$(dirname "$python"):$PATH ;; esac
  in_slurm=${SLURM_JOB_ID:-}
  in_container=
  if [ -e /.dockerenv ] || [ -e /run/.containerenv ] || [ -n "${ENROOT_ROOTFS:-}" ]; then in_container=1; fi
  find_data
  find_results
}

# Inside a container of Slurm the two documented folders are mounted at the documented places.
find_data() {
  data_dir=${DATA_DIR:-${datadir:-/workspace/coco}}
  checkpoints=${checkpointdir:-/workspace/checkpoints}
  mounted=
  if [ -n "${CONTAINER_IMAGE:-}" ] && [ -n "$in_slurm$documented_nodes" ]; then
    mounted=1 data_dir=/workspace/coco checkpoints=/workspace/checkpoints
  fi
}

# Sets backbone: BACKBONE_CKPT, or what has this name among the checkpoints.
find_backbone() {
  backbone_name=$1
  backbone=$checkpoints/$1
  if [ -z "$mounted" ]; then backbone=${BACKBONE_CKPT:-$backbone}; fi
}

# /tmp is the documented place. It is lost with a container and not shared between nodes, so it is the last choice.
find_results() {
  results_dir=${RESULTS_DIR:-}
  if [ -n "$results_dir" ]; then
    case $results_dir in /*) ;; *) results_dir=$PWD/$results_dir ;; esac
  elif [ -n "$in_slurm$documented_nodes" ]; then
    results_dir=${SLURM_SUBMIT_DIR:-$PWD}/results
  elif [ -d /workspace/results ] || [ -n "$in_container" ]; then
    results_dir=/workspace/results
    [ -d /workspace/results ] || say "no folder is mounted at /workspace/results: what is written there goes with the container"
  else
    results_dir=/tmp
  fi
  if [ -n "${MODEL_DIR:-}" ]; then
    case $MODEL_DIR in /*) ;; *) MODEL_DIR=$PWD/$MODEL_DIR ;; esac
  fi
}

# Gives a variable a value unless it has one; it becomes part of what a dry run shows.
default() {
  if [ -z "${!1+set}" ]; then export "$1=$2"; fi
  shown_variables+=("$1")
}

set_rank_variables() {
  shown_variables=(PYTHONPATH)
  # For programs that are modules of the repository; paths in flags stay relative to where the script was called.
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
  # Gradients go through NCCL. MPI carries only Horovod's negotiation, for which plain TCP serves and verbs hang on some
  # fabrics; as in the reference (-mca pml ob1 -mca btl ^openib).
  default NCCL_DEBUG WARN
  default OMPI_MCA_pml ob1
  default OMPI_MCA_btl ^openib
  default OMPI_MCA_coll_hcoll_enable 0
  default UCX_WARN_UNUSED_ENV_VARS n
  # A rank that the others wait for is named after a minute; after half an hour the job ends.
  default HOROVOD_STALL_CHECK_TIME_SECONDS 60
  default HOROVOD_STALL_SHUTDOWN_TIME_SECONDS 1800
  # TensorFlow has threads of its own; those of OpenMP libraries would come on top, for every rank.
  default OMP_NUM_THREADS 1
  default TF_CPP_MIN_LOG_LEVEL 2
  default PYTHONUNBUFFERED 1
  # The driver's cache of compiled kernels outlives the run; its 256 MB are too few for a network. XLA's own cache on disk
  # (--tf_xla_persistent_cache_directory) ends compilation with an error in TensorFlow 2.15, tried on a CPU.
  default CUDA_CACHE_MAXSIZE 2147483648
  [ -z "${TF_GPU_HOST_MEM_LIMIT_IN_MB:-}" ] || shown_variables+=(TF_GPU_HOST_MEM_LIMIT_IN_MB)
}

# The variables that ranks on other hosts must be given: ours, and what the user set for the libraries.
exported_names() {
  compgen -e | grep -E '^(PATH|LD_LIBRARY_PATH|PYTHON[A-Z]+|NCCL_.*|UCX_.*|HOROVOD_.*|TF_.*|XLA_.*|RINGDET_.*|OMP_NUM_THREADS|CUDA_.*)$'
}
