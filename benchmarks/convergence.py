"""How fast the robust loss's gradient shrinks, with and without coded gradients: against 1/sqrt(T).

    python benchmarks/convergence.py [--out convergence.svg]

Zhang 2022 (DAT) state that training comes to first-order stationary points at O(1/sqrt(T)), SGD's
own order, coded gradients or not. For SGD that is the mean squared gradient norm over T updates
with a step size in proportion to 1/sqrt(T) (Ghadimi 2013). Here it is measured on a problem whose
worst case is known, so that nothing but stochastic gradients and their codes stands between the
theorem and the figure:

- a linear model of digits, even against odd, attacked in an L2 ball: the worst margin of w is
  y w.x - eps |w|, reached exactly, and smooth wherever w is not 0 (an Linf ball gives |w|_1,
  which has corners where training ends);
- the loss sigmoid(-margin) + decay/2 |w|^2, smooth, bounded below and not convex, as the theorem
  allows; the decay keeps w small, without it all gradients, and their noise, fade as w grows;
- 4 workers, each with digits of its own (the images are dealt out in the order of their digit),
  and one of its images an update.

For each T runs of their own, with step size c/sqrt(T). What is measured is the gradient of all
images, before each of the T updates. Two controls show that the figure can come out otherwise.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from measuring import setting
from torch import Tensor

from gratis.data import load
from gratis.quantiser import dequantise, quantise

WORKERS, IMAGES, EPS, DECAY = 4, 1, 0.3, 0.01
HORIZONS = [2**k for k in range(6, 13)]
STEP = 32.0  # c: steps from 4 at T = 64 to 0.5; from about 25 on they would not be stable
Send = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Row:
    """A way to send gradients: [seeds, workers, d] -> their average [seeds, d]."""

    send: Send
    step: Callable[[int], float] = lambda updates: STEP / updates**0.5
    whole: bool = False  # a worker takes all its images for each update


def mean(gradients: Tensor, generator: torch.Generator) -> Tensor:
    return gradients.mean(1)


def coded(gradients: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """Each gradient [..., d] as it arrives, with a norm of its own."""
    arrived = []
    for row in gradients.flatten(0, -2):
        codes, norm = quantise(row, bits, generator)
        arrived.append(dequantise(codes, norm, bits, len(row)))
    return torch.stack(arrived).view_as(gradients).to(gradients.dtype)


def one_sided(bits: int) -> Send:
    return lambda gradients, generator: coded(gradients, bits, generator).mean(1)


def two_sided(bits: int) -> Send:
    once = one_sided(bits)
    return lambda gradients, generator: coded(once(gradients, generator), bits, generator)


ROWS = {
    "fp32": Row(mean),
    "8 bits, one-sided": Row(one_sided(8)),
    "8 bits, two-sided": Row(two_sided(8)),
    "4 bits, one-sided": Row(one_sided(4)),
    "4 bits, two-sided": Row(two_sided(4)),
    "control: step size of 4 for all T": Row(mean, step=lambda updates: 4.0),
    "control: the same, all images": Row(mean, step=lambda updates: 4.0, whole=True),
}


def digits() -> tuple[Tensor, Tensor]:
    """x [workers, n, d] about 0 and y [workers, n], even 1 and odd -1."""
    images = load("digits", "train")
    order = images.y.argsort(stable=True)
    order = order[: len(order) // WORKERS * WORKERS]
    x = images.pixels(order).flatten(1).double()
    y = 1.0 - 2.0 * (images.y[order] % 2).double()
    return (x - x.mean(0)).view(WORKERS, -1, x.shape[1]), y.view(WORKERS, -1)


def gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Of each worker's mean worst-case loss: w [s, d], x [s, m, n, d], y [s, m, n] -> [s, m, d]."""
    norm = w.norm(dim=1, keepdim=True)
    margin = y * torch.einsum("smnd,sd->smn", x, w) - EPS * norm[:, :, None]
    # d sigmoid(-margin) / d margin
    slope = torch.sigmoid(margin) * (torch.sigmoid(margin) - 1)
    away = (EPS * w / norm)[:, None]
    towards = torch.einsum("smnd,smn->smd", x, slope * y) / x.shape[2]
    return towards - away * slope.mean(2, keepdim=True) + DECAY * w[:, None]


def measured(row: Row, updates: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, least) squared norm of the whole gradient over the run, for each seed."""
    x, y = digits()
    generator = torch.Generator().manual_seed(updates)
    w = 0.1 * torch.randn(seeds, x.shape[-1], generator=generator, dtype=x.dtype)
    everyone = torch.arange(WORKERS)[:, None]
    norms = []
    for _ in range(updates):
        gradients = gradient(w, x[None], y[None])
        norms.append(gradients.mean(1).square().sum(1))
        if not row.whole:
            chosen = torch.randint(x.shape[1], (seeds, WORKERS, IMAGES), generator=generator)
            gradients = gradient(w, x[everyone, chosen], y[everyone, chosen])
        w = w - row.step(updates) * row.send(gradients, generator)
    squared = torch.stack(norms)
    return squared.mean(0).numpy(), squared.amin(0).numpy()


Measured = dict[str, tuple[np.ndarray, np.ndarray]]
"""Row -> (means, least values), each [horizons, seeds]."""


def slopes(values: np.ndarray) -> np.ndarray:
    """Of log(values [horizons, seeds]) against log T, for each seed, by least squares."""
    return np.polyfit(np.log(HORIZONS), np.log(values), 1)[0]


def print_table(found: Measured) -> None:
    last = HORIZONS[-1]
    print("| gradients | slope of the mean | of its last half | slope of the least |", end="")
    print(f" mean at T = {last} | of fp32's |\n|---|---|---|---|---|---|")
    half = len(HORIZONS) // 2
    base = found["fp32"][0][-1].mean()
    for name, (means, least) in found.items():
        tail = np.polyfit(np.log(HORIZONS[half:]), np.log(means[half:]), 1)[0]
        cells = [f"{s.mean():.2f} ± {s.std(ddof=1):.2f}" for s in (slopes(means), tail)]
        cells.append(f"{slopes(least).mean():.2f} ± {slopes(least).std(ddof=1):.2f}")
        print(f"| {name} | {' | '.join(cells)} | {means[-1].mean():.3g} |", end="")
        print(f" {means[-1].mean() / base:.2f} |")


def draw(found: Measured, out: Path) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "convergence"  # the same figures give the same file
    canvas, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    groups = [n for n in found if "control" not in n], [n for n in found if "bits" not in n]
    for axis, names in zip(axes, groups, strict=True):
        for name, marker in zip(names, "osD^v", strict=False):
            means = found[name][0]
            axis.plot(HORIZONS, means.mean(1), marker=marker, markersize=4, label=name)
            axis.fill_between(HORIZONS, means.min(1), means.max(1), alpha=0.2)
        first = found["fp32"][0][0].mean()
        order = [first * (HORIZONS[0] / t) ** 0.5 for t in HORIZONS]
        axis.plot(HORIZONS, order, "--", color="grey", label="1/sqrt(T)")
        axis.set(xscale="log", yscale="log", xlabel="updates T, a run for each")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("mean squared norm of the whole robust gradient")
    canvas.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("convergence.svg"))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    found: Measured = {}
    for name, row in ROWS.items():
        runs = [measured(row, updates, options.seeds) for updates in HORIZONS]
        means, least = (np.stack(column) for column in zip(*runs, strict=True))
        found[name] = means, least
    print(setting())
    print(f"{options.seeds} seeds, mean ± standard deviation; the theorem's slope is -0.5\n")
    print_table(found)
    draw(found, options.out)
    print(f"\n{options.out} ({time.perf_counter() - began:.0f} s in all)")


if __name__ == "__main__":
    main()
