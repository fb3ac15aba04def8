"""Our `autoattack` beside pyautoattack (Croce & Hein's code as a package), same network and images.

    pip install pyautoattack
    gratis train mnist --set data.root=DIR --out runs/mnist
    python benchmarks/autoattack_judges.py runs/mnist --images 500

Prints robust accuracy for three seeds of theirs and three of ours,
and the seconds of both, taken in turns.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from gratis.assess import question, trained
from gratis.evaluate import robust_accuracy
from gratis.recipe import from_plain
from gratis.run import Run
from gratis.setting import load_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run.open(options.run)
    recipe = from_plain(run.recipe)
    images = load_split(recipe.data, "test").select(torch.arange(options.images))
    model = trained(recipe, images, run.load_checkpoint("last")[0]).eval()
    ball = question(recipe).balls[0]
    x, y = images.pixels(slice(None)), images.y
    print(f"{options.run}: {len(x)} images at {ball.norm} {ball.eps:g}, torch {torch.__version__}")
    theirs_took, ours_took = [], []
    for seed in range(options.seeds):
        clock = time.perf_counter()
        left = judged(model, x, y, ball.eps, seed)
        theirs_took.append(time.perf_counter() - clock)
        print(f"pyautoattack seed {seed}: {100 * left:.2f} %, {theirs_took[-1]:.0f} s", flush=True)
        clock = time.perf_counter()
        found = robust_accuracy(model, [(x, y)], ["autoattack"], ball=ball, seed=seed)
        ours_took.append(time.perf_counter() - clock)
        standing = found.robust.double().mean().item()
        print(f"gratis seed {seed}: {100 * standing:.2f} %, {ours_took[-1]:.0f} s", flush=True)
    ratio = statistics.median(theirs_took) / statistics.median(ours_took)
    print(f"median seconds, theirs over ours: {ratio:.2f}")


def judged(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> float:
    """pyautoattack's robust accuracy, checked by our own forward on the points that it returns."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, norm="Linf", eps=eps, version="standard", seed=seed, device="cpu")
    points = attack.run_standard_evaluation(x, y, batch_size=len(x))
    points = points[0] if isinstance(points, tuple) else points
    with torch.no_grad():
        return (model(points).argmax(1) == y).double().mean().item()


if __name__ == "__main__":
    main()
