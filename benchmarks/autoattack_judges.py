"""Our `autoattack` beside pyautoattack (Croce & Hein's code as a package), same network and images.

    pip install pyautoattack
    gratis train mnist --set data.root=DIR --out runs/mnist
    OMP_NUM_THREADS=1 python benchmarks/autoattack_judges.py runs/mnist --images 500 --threads 1

One round a seed, theirs and then ours: robust accuracy, seconds, and seconds of processor time,
which other programs on the machine disturb less. Then the medians and their ratios, as a whole
and for each part, and whether ours lies within the spread of their seeds. Both are given the
same model, in eval mode and in the memory format that it is evaluated in, and the same batches.
Theirs is called as its users do, with parameters that require gradients (its FAB then computes
those as well); ours freezes them by itself.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measuring import setting
from torch import Tensor, nn

from gratis.asked import question
from gratis.assess import trained
from gratis.balls import Ball
from gratis.evaluate import robust_accuracy
from gratis.recipe import from_plain
from gratis.run import Run
from gratis.training_data import load_split

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")

Round = dict[str, float]
"""Seconds of each part, "seconds" and "processor" seconds of the whole, "accuracy" in %."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, x, y, ball = given(options.run, options.images)
    learn = "require" if any(p.requires_grad for p in model.parameters()) else "do not require"
    print(f"{setting()}, pyautoattack {version('pyautoattack')}")
    print(
        f"{options.run}: {len(x)} images in batches of {options.batch}, {ball.norm} {ball.eps:g}; "
        f"parameters {learn} gradients when theirs is called",
        flush=True,
    )
    rounds: dict[str, list[Round]] = {"pyautoattack": [], "gratis": []}
    for seed in range(options.seeds):
        for name, attack in (("pyautoattack", theirs), ("gratis", ours)):
            found = timed(attack, model, x, y, ball, options.batch, seed)
            rounds[name].append(found)
            parts = ", ".join(f"{part} {found.get(part, 0):.1f}" for part in PARTS)
            print(
                f"seed {seed} {name:12}: {found['accuracy']:.2f} %, {found['seconds']:.1f} s "
                f"({parts}), processor {found['processor']:.1f} s",
                flush=True,
            )
    for what in (*PARTS, "seconds", "processor"):
        print(f"{what:9}: median {compared(rounds, what)}")
    print(spread(*([r["accuracy"] for r in found] for found in rounds.values())))


def given(directory: Path, count: int) -> tuple[nn.Module, Tensor, Tensor, Ball]:
    """The run's last network as it is evaluated, its first test images, labels, and the ball."""
    run = Run.open(directory)
    recipe = from_plain(run.recipe)
    images = load_split(recipe.data, "test").select(torch.arange(count))
    model = trained(recipe, images, run.load_checkpoint("last")[0]).eval()
    if recipe.engine.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model, images.pixels(slice(None)), images.y, question(recipe).balls[0]


def timed(attack: Callable[..., tuple[float, Round]], *arguments: Any) -> Round:
    clock, processor = time.perf_counter(), time.process_time()
    accuracy, parts = attack(*arguments)
    whole = {"seconds": time.perf_counter() - clock, "processor": time.process_time() - processor}
    return {**parts, **whole, "accuracy": 100 * accuracy}


def theirs(
    model: nn.Module, x: Tensor, y: Tensor, ball: Ball, batch: int, seed: int
) -> tuple[float, Round]:
    """Robust accuracy, checked by our own forward on the points returned, and seconds a part."""
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[ball.norm]
    attack = AutoAttack(model, norm=norm, eps=ball.eps, version="standard", seed=seed, device="cpu")
    taken = dict.fromkeys(PARTS, 0.0)
    parts = (attack.apgd, attack.apgd_targeted, attack.fab, attack.square)
    for name, part in zip(PARTS, parts, strict=True):
        part.perturb = clocked(part.perturb, name, taken)
    points = attack.run_standard_evaluation(x, y, batch_size=batch)
    points = points[0] if isinstance(points, tuple) else points
    with torch.no_grad():
        return (model(points).argmax(1) == y).double().mean().item(), taken


def clocked(function: Callable[..., Tensor], name: str, taken: Round) -> Callable[..., Tensor]:
    """The same function, its seconds added to `taken`."""

    def call(*arguments: Tensor) -> Tensor:
        clock = time.perf_counter()
        answer = function(*arguments)
        taken[name] += time.perf_counter() - clock
        return answer

    return call


def ours(
    model: nn.Module, x: Tensor, y: Tensor, ball: Ball, batch: int, seed: int
) -> tuple[float, Round]:
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    found = robust_accuracy(model, batches, ["autoattack"], ball=ball, seed=seed)
    return found.robust.double().mean().item(), {p.attack: p.seconds for p in found.parts[0]}


def compared(rounds: dict[str, list[Round]], what: str) -> str:
    one, other = (statistics.median(r.get(what, 0) for r in found) for found in rounds.values())
    ratio = f"{one / other:.2f}" if other else "undefined"
    return f"{one:8.1f} s theirs, {other:8.1f} s ours, theirs over ours {ratio}"


def spread(theirs: list[float], ours: list[float]) -> str:
    """In words, where our seeds lie with respect to theirs."""
    below = sum(value < min(theirs) for value in ours)
    above = sum(value > max(theirs) for value in ours)
    return (
        f"robust accuracy: theirs {min(theirs):.2f} to {max(theirs):.2f} %, "
        f"ours {min(ours):.2f} to {max(ours):.2f} %; of our {len(ours)} seeds {below} below "
        f"(a stronger attack) and {above} above their spread"
    )


if __name__ == "__main__":
    main()
