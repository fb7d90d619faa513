"""Writes what Mask R-CNN finds on COCO val2017, with the arguments of NVIDIA's TF2 program.

python scripts/maskrcnn/inference.py --batch_size 8 --amp
"""

from tf2_command_line import add_gpus, launch, new_parser


def main() -> None:
    """Starts the inference."""
    parser = new_parser(__doc__.splitlines()[0], batch_size=8, mode="eval")
    add_gpus(parser, default=1)
    arguments, flags = parser.parse_known_args()
    flags = ["--skip_eval", *flags]
    launch("evaluate", arguments, flags, variables={"CKPT": arguments.model_dir})


if __name__ == "__main__":
    main()
