"""What an input gradient costs an image, by the number of images in the batch.

    python benchmarks/small_batches.py

The network of `quick-cifar10` at width 64, untrained, eval mode, channels last. The rounds run
through all sizes in turns, up and down; medians are printed, and how much longer the first batch
of a size took than the others.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from measuring import setting
from torch import Tensor, nn

from gratis.attacks.first_layer import input_gradients
from gratis.nn import build_model

WARM, WARM_WITH = 3, 257
SIZES = (2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64, 85, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape = {"classes": 10, "channels": 3, "image_size": 32}
    pixels = {"mean": [0.5] * 3, "std": [0.25] * 3}
    kind = {"activation": "silu", "pool": "average", "mirrored": True}
    model = build_model("resnet9", width=options.width, **kind, **shape, **pixels)  # type: ignore[arg-type]
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    print(f"resnet9, width {options.width}, {options.rounds} rounds; {setting()}")
    print("\n| precision | images | ms an image | first batch of its size, ms more |")
    print("|---|---|---|---|")
    for precision in (torch.float32, torch.bfloat16):
        seconds: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(WARM):  # another size: what is new to the process is no cost of a size
            gradient(
                model, torch.rand(WARM_WITH, 3, 32, 32), torch.zeros(WARM_WITH).long(), precision
            )
        for turn in range(1 + options.rounds):
            for size in SIZES[:: 1 if turn % 2 == 0 else -1]:
                x, y = torch.rand(size, 3, 32, 32), torch.randint(0, 10, (size,))
                seconds[size].append(gradient(model, x, y, precision))
        for size, (first, *others) in seconds.items():
            median = statistics.median(others)
            print(
                f"| {str(precision).removeprefix('torch.')} | {size} "
                f"| {1e3 * median / size:.2f} | {1e3 * (first - median):.0f} |"
            )


def gradient(model: nn.Module, x: Tensor, y: Tensor, precision: torch.dtype) -> float:
    """The seconds that it takes."""
    began = time.perf_counter()
    point = x.requires_grad_()
    low = precision != torch.float32
    with input_gradients(point), torch.autocast("cpu", precision, enabled=low):
        logits = model(point)
    torch.autograd.grad(F.cross_entropy(logits.float(), y, reduction="sum"), point)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
