"""What the masking checks say of a run's network as it is, and of four ways to spoil it.

    python benchmarks/planted_failures.py runs/mnist --eps 0.1

PGD-50-2 on the first 200 test images, then the quick checks. Each wrapper leaves the network's
decisions (nearly) as they are, so that robustness which it seems to add is not there.
"""

import argparse
from pathlib import Path

import torch
from measuring import setting
from torch import Tensor, nn

from gratis.assess import trained
from gratis.balls import Linf
from gratis.evaluate import check_masking, robust_accuracy
from gratis.names import number
from gratis.recipe import from_plain
from gratis.run import Run
from gratis.training_data import load_split

IMAGES = 200


class Quantised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 8).round() / 8


class Noisy(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits + 0.3 * torch.randn_like(logits)


class Scaled(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return 1000 * logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--eps", type=number, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    run = Run.open(options.run)
    recipe = from_plain(run.recipe)
    images = load_split(recipe.data, "test").select(torch.arange(IMAGES))
    net = trained(recipe, images, run.load_checkpoint("last")[0]).eval()
    spoiled = {
        "as it is": net,
        "softmax": nn.Sequential(net, nn.Softmax(1)),
        "quantised input": nn.Sequential(Quantised(), net),
        "noisy logits": nn.Sequential(net, Noisy()),
        "logits x 1000": nn.Sequential(net, Scaled()),
    }
    ball = Linf(options.eps)
    print(setting())
    for name, model in spoiled.items():
        batches = [(images.pixels(slice(None)), images.y)]
        found = robust_accuracy(model, batches, ["pgd-50-2"], ball=ball)
        checks = check_masking(model, lambda batches=batches: batches, found, ball=ball)
        said = "; ".join(filter(None, [checks.verdict, checks.warnings]))
        failed = ", ".join(f.id for f in checks.findings if f.verdict == "fail") or "none"
        robust = 100 * found.robust.double().mean().item()
        print(f"{name}: robust {robust:.1f} %; {said}; failed: {failed}", flush=True)


if __name__ == "__main__":
    main()
