"""Writes what Mask R-CNN finds on COCO val2017, with the arguments of NVIDIA's TF2 program.

python scripts/maskrcnn/inference.py --batch_size 8 --amp
"""

from tf2_command_line import launch, parse

if __name__ == "__main__":
    arguments, flags = parse(__doc__, mode="eval", batch_size=8, gpus=1)
    launch("evaluate", arguments, ["--skip_eval", *flags], CKPT=arguments.model_dir)
