"""How cost grows: an epoch and memory with the images, memory with restarts, evaluation with
survivors.

    python benchmarks/growth.py --out growth.svg

A small network on scikit-learn's digits, repeated where more images are asked for; for memory
with the images on JPEG files of smooth noise, streamed from a store as `data.stored` does. Prints
each series beside what a straight line through its first and last point would say, and draws
them. Memory is that of a process of its own: with restarts its peak, with streamed images what it
holds besides files mapped into it, after an epoch of learning. A set in memory takes its pixels.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from measuring import held, paired, setting
from PIL import Image
from torch import Tensor

from gratis import Learner, Linf, fgsm_rs, robust_accuracy
from gratis.cli.process import prepare
from gratis.data import Images, Loader, StreamLoader, load
from gratis.data.streamed import Keeping
from gratis.nn import build_model
from gratis.passes import Batch

BALL = Linf(0.2)
ATTACK = "pgd-20-5"
STREAMED = (1000, 2000, 4000, 8000)
SIDE = 128
"""Of streamed images, in pixels: 49 kB an image, so that the most take 393 MB."""
Series = list[tuple[float, float]]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("small-conv", classes=10, channels=1, image_size=8)


def epoch_seconds(rounds: int) -> Series:
    """(images, seconds of a data pass)."""
    images = load("digits", "train")
    counts = [1280, 2560, 5120, 10240]

    def epoch(count: int) -> None:
        rows = torch.arange(count) % len(images)
        learner, loader = of(images.select(rows))
        for x, y in loader.epoch(0):
            learner.fit(fgsm_rs(BALL), Batch(x, y))

    def of(chosen: Images) -> tuple[Learner, Loader]:
        model = network()
        return Learner(model, torch.optim.SGD(model.parameters(), 0.05), seed=0), Loader(
            chosen, 128, seed=0, augment=["crop-1"]
        )

    taken = paired({str(n): lambda n=n: epoch(n) for n in counts}, rounds)  # type: ignore[misc]
    return [(n, taken[str(n)]) for n in counts]


def trained() -> torch.nn.Module:
    model = network()
    learner = Learner(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), seed=0)
    loader = Loader(load("digits", "train"), 64, seed=0)
    for epoch in range(12):
        for x, y in loader.epoch(epoch):
            learner.fit(fgsm_rs(BALL), Batch(x, y))
    return model.eval()


def evaluation_seconds(rounds: int) -> Series:
    """(surviving images of 200, seconds of evaluating the 200)."""
    model, test = trained(), load("digits", "test")
    x, y = test.pixels(slice(None)), test.y
    robust = robust_accuracy(model, [(x, y)], [ATTACK], ball=BALL).robust
    stand, fall = robust.nonzero().flatten(), (~robust).nonzero().flatten()
    most = min(200, len(stand))
    fall = fall.repeat(200 // len(fall) + 1)
    mixes: dict[str, Tensor] = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        kept = round(share * most)
        mixes[str(kept)] = torch.cat([stand[:kept], fall[: 200 - kept]])

    def evaluate(rows: Tensor) -> None:
        robust_accuracy(model, [(x[rows], y[rows])], [ATTACK], ball=BALL)

    taken = paired({k: lambda r=r: evaluate(r) for k, r in mixes.items()}, rounds)  # type: ignore[misc]
    return [(float(kept), seconds) for kept, seconds in taken.items()]


def peak_memory() -> Series:
    """(restarts, peak MiB of a process that evaluates)."""
    return [(restarts, of_process("--peak", str(restarts))) for restarts in (1, 5, 10, 20)]


def streamed_memory() -> Series:
    """(streamed images, MiB that a process holds after an epoch over them)."""
    series: Series = []
    for count in STREAMED:
        with tempfile.TemporaryDirectory() as root:
            write_images(Path(root), count)
            of_process("--held", root)  # decodes them; the next finds them decoded
            series.append((count, of_process("--held", root)))
    return series


def write_images(root: Path, count: int) -> None:
    """So many training images as files in class folders, and a test image of each class."""
    noise = np.random.default_rng(0)
    for row in range(count + 10):
        split = "train" if row < count else "test"
        place = root / split / f"class-{row % 10}" / f"{row}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((SIDE, SIDE)).save(place)


def of_process(*arguments: str) -> float:
    """What this script prints when it is called with such arguments."""
    command = [sys.executable, __file__, *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def held_after_epoch(root: Path) -> None:
    torch.manual_seed(0)
    images, _ = Keeping(root, workers=torch.get_num_threads()).training((SIDE,), 32, None)
    model = build_model("small-conv", classes=10, channels=3, image_size=32)
    learner = Learner(model, torch.optim.SGD(model.parameters(), 0.01), seed=0)
    for x, y in StreamLoader(images, 64, seed=0, augment=["resized-crop", "flip"]):
        learner.fit(fgsm_rs(BALL), Batch(x, y))
    print(held() / 2**20)


def peak(restarts: int) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(512, 1, 8, 8), torch.randint(0, 10, (512,))
    robust_accuracy(network().eval(), [(x, y)], [f"pgd-5-{restarts}"], ball=Linf(0.01))
    # not getrusage's: that one starts from the peak of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    print(int(status["VmHWM"].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("growth.svg"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--held", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare()  # memory as the command line has it
    torch.set_num_threads(options.threads)
    if options.peak:
        peak(options.peak)
        return
    if options.held:
        held_after_epoch(options.held)
        return
    began = time.perf_counter()
    print(setting())
    figures = {
        ("training images", "seconds of a data pass"): epoch_seconds(options.rounds),
        ("streamed images", "memory held, MiB"): streamed_memory(),
        ("restarts", "peak memory, MiB"): peak_memory(),
        ("images of 200 that stand", f"seconds of {ATTACK}"): evaluation_seconds(options.rounds),
    }
    for (x_label, y_label), series in figures.items():
        print(f"\n| {x_label} | {y_label} | straight line |\n|---|---|---|")
        for x, y in series:
            print(f"| {x:g} | {y:.3f} | {on_line(series, x):.3f} |")
    draw(figures, options.out)
    print(f"\n{options.out} ({time.perf_counter() - began:.0f} s in all)")


def on_line(series: Series, x: float) -> float:
    """What the line through the first and last point says at x."""
    (x0, y0), (x1, y1) = series[0], series[-1]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def draw(figures: dict[tuple[str, str], Series], out: Path) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot

    canvas, axes = pyplot.subplots(1, len(figures), figsize=(14, 3.2), constrained_layout=True)
    for axis, ((x_label, y_label), series) in zip(axes, figures.items(), strict=True):
        axis.plot(*zip(*series, strict=True), marker="o")
        axis.plot([series[0][0], series[-1][0]], [series[0][1], series[-1][1]], "--", color="grey")
        axis.set(xlabel=x_label, ylabel=y_label, ylim=(0, 1.1 * max(y for _, y in series)))
    canvas.savefig(out)


if __name__ == "__main__":
    main()
