"""Times Mask R-CNN at inference on one GPU, with the arguments of NVIDIA's TF2 program.

The weights are those of a run in --model_dir, and random where there is none.

python scripts/maskrcnn/benchmark_inference.py --batch_size 24 --amp
"""

from pathlib import Path

from tf2_command_line import launch, parse

if __name__ == "__main__":
    arguments, flags = parse(__doc__, mode="eval")
    has_run = any(Path(arguments.model_dir).glob("ckpt-*.index"))
    checkpoint = {"CKPT": arguments.model_dir} if has_run else {}
    launch("inference-benchmark", arguments, flags, **checkpoint)
