"""Times 200 training steps of Mask R-CNN, with the arguments of NVIDIA's TF2 program.

python scripts/maskrcnn/benchmark_training.py --gpus 8 --batch_size 4 --amp
"""

from tf2_command_line import launch, parse

if __name__ == "__main__":
    launch("training-benchmark", *parse(__doc__, mode="train", gpus=0))
