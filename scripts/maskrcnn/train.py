"""Trains Mask R-CNN and evaluates it at the end, with the arguments of NVIDIA's TF2 program.

python scripts/maskrcnn/train.py --gpus 8 --batch_size 4 --amp
"""

from tf2_command_line import launch, parse

if __name__ == "__main__":
    arguments, flags = parse(__doc__, mode="train", batch_size=4, gpus=0, may_skip_eval=True)
    launch("convergence", arguments, flags, MODEL_DIR=arguments.model_dir)
