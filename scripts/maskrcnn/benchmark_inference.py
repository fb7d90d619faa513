"""Times Mask R-CNN at inference on one GPU, with the arguments of NVIDIA's TF2 program.

The weights are those of a run in --model_dir, and random where there is none.

python scripts/maskrcnn/benchmark_inference.py --batch_size 24 --amp
"""

from pathlib import Path

from tf2_command_line import launch, new_parser


def main() -> None:
    """Starts the benchmark."""
    parser = new_parser(__doc__.splitlines()[0], batch_size=None, mode="eval")
    arguments, flags = parser.parse_known_args()
    has_run = any(Path(arguments.model_dir).glob("ckpt-*.index"))
    variables = {"CKPT": arguments.model_dir} if has_run else {}
    launch("inference-benchmark", arguments, flags, variables=variables)


if __name__ == "__main__":
    main()
