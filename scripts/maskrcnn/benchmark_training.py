"""Times 200 training steps of Mask R-CNN, with the arguments of NVIDIA's TF2 program.

python scripts/maskrcnn/benchmark_training.py --gpus 8 --batch_size 4 --amp
"""

from tf2_command_line import add_training_arguments, is_spare_task, launch, new_parser


def main() -> None:
    """Starts the benchmark."""
    parser = new_parser(__doc__.splitlines()[0], batch_size=None, mode="train")
    add_training_arguments(parser)
    arguments, flags = parser.parse_known_args()
    if is_spare_task(arguments):
        return
    launch("training-benchmark", arguments, flags)


if __name__ == "__main__":
    main()
