"""What PGD-50-10 costs here beside the loop that everyone writes: same network, images and run.

    gratis train cifar10 --set data.root=DIR --out runs/cifar10
    python benchmarks/evaluation_cost.py runs/cifar10 --images 200 --like 0.83 0.45

The bare loop asks for input gradients alone and drops nothing. Its cost is the same for every
restart, so that a few of them tell that of all (`--bare-restarts`; the starts are other ones).
Rounds run in turns, medians are printed. On a CPU seconds are those of the process, which other
work on the machine moves less than the clock on the wall. `--like CLEAN ROBUST` chooses images so
that so large a share of them is right when clean, and stands after pgd-10.
`--peers [NAME ...]` adds the same attack by other libraries (see `peers.py`), all or those named,
with all its restarts.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peers
import torch
import torch.nn.functional as F
from measuring import setting
from torch import Tensor, nn

from gratis.asked import question
from gratis.assess import trained
from gratis.balls import Ball
from gratis.evaluate import Robustness, robust_accuracy
from gratis.recipe import from_plain
from gratis.run import Run
from gratis.setting import pick_device
from gratis.training_data import load_split

STEPS, RESTARTS = 50, 10
UNITS = RESTARTS * (STEPS * 2 + 1) + 1


def bare(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, restarts: int, size: int) -> Tensor:
    """PGD in Linf as plain PyTorch; which images [N] stand at every point."""
    standing = []
    for x, y in zip(x.split(size), y.split(size), strict=True):  # noqa: B020
        with torch.no_grad():
            right = model(x).argmax(1) == y
        for _ in range(restarts):
            delta = torch.empty_like(x).uniform_(-ball.eps, ball.eps)
            for _ in range(STEPS):
                point = (x + delta).clamp(0, 1).requires_grad_()
                logits = model(point)
                (grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), point)
                right &= logits.detach().argmax(1) == y
                delta = (delta + ball.eps / 4 * grad.sign()).clamp(-ball.eps, ball.eps)
            with torch.no_grad():
                right &= model((x + delta).clamp(0, 1)).argmax(1) == y
        standing.append(right)
    return torch.cat(standing).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--like", type=float, nargs=2, metavar=("CLEAN", "ROBUST"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare-restarts", type=int, default=2)
    parser.add_argument("--peers", nargs="*", choices=peers.WITH_RESTARTS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = Run.open(options.run)
    recipe = from_plain(run.recipe)
    device = pick_device(recipe.engine.device)
    images = load_split(recipe.data, "test")
    model = trained(recipe, images, run.load_checkpoint("last")[0]).eval().to(device)
    model.requires_grad_(False)
    if recipe.engine.channels_last:
        model = model.to(memory_format=torch.channels_last)
    ball = question(recipe).balls[0]
    count = options.images * (4 if options.like else 1)
    x, y = images.pixels(slice(0, count)).to(device), images.y[:count].to(device)
    if options.like:
        chosen = alike(evaluated(model, x, y, ball, "pgd-10", 64), options.images, *options.like)
        x, y = x[chosen], y[chosen]

    named: dict[str, Callable[[], Tensor | Robustness]] = {
        "bare": lambda: bare(model, x, y, ball, options.bare_restarts, options.batch),
        "fp32": lambda: evaluated(model, x, y, ball, "pgd-50-10", options.batch),
        "bf16": lambda: evaluated(model, x, y, ball, "pgd-50-10:bf16", options.batch),
    }
    libraries = () if options.peers is None else options.peers or peers.WITH_RESTARTS
    for name in libraries:
        theirs = copy.deepcopy(model).requires_grad_(True)
        attack = peers.pgd(
            name, theirs, eps=ball.eps, steps=STEPS, step_size=ball.eps / 4, restarts=RESTARTS
        )
        named[name] = partial(attacked, theirs, attack, x, y, options.batch)
    seconds: dict[str, list[float]] = {name: [] for name in named}
    found = {}
    for turn in range(options.rounds):
        for name in list(named)[:: 1 if turn % 2 == 0 else -1]:
            begun = now(device)
            found[name] = named[name]()
            seconds[name].append(now(device) - begun)
    took = {name: statistics.median(each) for name, each in seconds.items()}
    # the clean pass is made once, whatever the restarts
    restart = STEPS * 2 + 1
    took["bare"] *= (RESTARTS * restart + 1) / (options.bare_restarts * restart + 1)

    print(
        f"{options.run}: {len(x)} images at {ball.norm} {ball.eps:g} in batches of "
        f"{options.batch}, {options.rounds} rounds; {setting()}"
        + (f"; {peers.versions(libraries)}" if libraries else "")
    )
    stands = percent(found["bare"])
    scaled = f"from {options.bare_restarts} of {RESTARTS} restarts, which leave {stands}"
    print(f"bare loop: {took['bare']:.1f} s ({scaled}), {UNITS} units an image")
    for name in ("fp32", "bf16"):
        report(name, found[name], took[name], took[name] / took["bare"])
    for name in libraries:
        ratio = took[name] / took["bare"]
        print(f"{name}: {took[name]:.1f} s, {ratio:.3f} of bare; robust {percent(found[name])}")
    differ = int((found["fp32"].robust != found["bf16"].robust).sum())
    print(f"fp32 and bf16 differ in {differ} of {len(x)} images")


def evaluated(
    model: nn.Module, x: Tensor, y: Tensor, ball: Ball, attack: str, size: int
) -> Robustness:
    return robust_accuracy(
        model, zip(x.split(size), y.split(size), strict=True), [attack], ball=ball
    )


def attacked(model: nn.Module, attack: peers.Attack, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Which images [N] are right at the points that another library's attack ends at."""
    standing = []
    for x, y in zip(x.split(size), y.split(size), strict=True):  # noqa: B020
        points = attack(x, y)
        with torch.no_grad():
            standing.append(model.eval()(points).argmax(1) == y)
    return torch.cat(standing).cpu()


def alike(found: Robustness, count: int, clean: float, robust: float) -> Tensor:
    """`count` of the images, in order, with those shares of right and of robust ones."""
    right = found.correct[:, 0]
    kinds = {
        "robust": (found.robust, round(robust * count)),
        "broken": (right & ~found.robust, round(clean * count) - round(robust * count)),
        "misclassified": (~right, count - round(clean * count)),
    }
    for kind, (among, wanted) in kinds.items():
        if int(among.sum()) < wanted:
            raise SystemExit(f"only {int(among.sum())} {kind} images, {wanted} are wanted")
    rows = [among.nonzero().flatten()[:wanted] for among, wanted in kinds.values()]
    return torch.cat(rows).sort().values


def report(name: str, found: Robustness, seconds: float, ratio: float) -> None:
    right, robust = int(found.correct[:, 0].sum()), int(found.robust.sum())
    images, broken = len(found.robust), right - robust
    units = sum(meter.forwards + 2 * meter.probes for meter in found.meters)
    on_broken = (units - UNITS * robust - (images - right)) / max(broken, 1)
    print(
        f"gratis {name}: {seconds:.1f} s, {ratio:.3f} of bare; clean "
        f"{percent(found.correct[:, 0])}, robust {percent(found.robust)}; "
        f"{units / images:.0f} units an image, {units / images / UNITS:.3f} of bare: "
        f"1 misclassified ({images - right}), {on_broken:.1f} broken ({broken}), "
        f"{UNITS} robust ({robust})"
    )


def percent(flags: Tensor) -> str:
    return f"{100 * flags.double().mean():.1f} %"


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
