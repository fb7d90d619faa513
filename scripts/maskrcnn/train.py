"""Trains Mask R-CNN and evaluates it at the end, with the arguments of NVIDIA's TF2 program.

python scripts/maskrcnn/train.py --gpus 8 --batch_size 4 --amp
"""

from tf2_command_line import add_training_arguments, is_spare_task, launch, new_parser


def main() -> None:
    """Starts the training."""
    parser = new_parser(__doc__.splitlines()[0], batch_size=4, mode="train")
    add_training_arguments(parser)
    parser.add_argument("--no_eval", action="store_true", help="do not evaluate at the end")
    arguments, flags = parser.parse_known_args()
    if is_spare_task(arguments):
        return
    if arguments.no_eval:
        flags = ["--skip_test", *flags]
    variables = {"MODEL_DIR": arguments.model_dir}
    launch("convergence", arguments, flags, variables=variables)


if __name__ == "__main__":
    main()
