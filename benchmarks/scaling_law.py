"""What several machines save: a model of an update's time, fitted here, applied to ImageNet.

    python benchmarks/scaling_law.py [--rows traffic.json ...] [--out scaling.svg]

Nothing is trained. `gratis.scaling` says what an update takes; the one number taken from Zhang
2022 (DAT) is what one machine needed, and the speed-up of six is the model's answer, beside what
they print. With --rows the model is first fitted to updates measured by gradient_traffic.py.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from scaling_fit import UNKNOWN, Fit, Row, draw_fit, fit, print_fit
from scipy.optimize import brentq

from gratis.reproduce.papers import read
from gratis.scaling import (
    HEADERS,
    INSIDE,
    Case,
    Cluster,
    Compute,
    Exchange,
    Gradient,
    Link,
    seconds_per_image,
    update,
)

# Zhang 2022: printed figures and what the released code does stand in the table's file
TABLE = read("dat-scaling")
(PAPER,) = TABLE.choose(("6x6",))
HOURS, SPEED_UP = PAPER.printed["hours"], PAPER.printed["speed-up"]
BASE = TABLE.case(PAPER)
JOB = BASE.job
BUCKETED = replace(BASE, messages=5)  # DistributedDataParallel's 25 MB at a time, not each tensor
CODES: dict[str, tuple[int, Exchange]] = {
    "fp32": (32, "all-reduce"),
    "8 bits, one-sided": (8, "one-sided"),
    "8 bits, two-sided": (8, "two-sided"),
    "4 bits, one-sided": (4, "one-sided"),
    "4 bits, two-sided": (4, "two-sided"),
}


def batches(of_each: float) -> Case:
    """Every machine has another batch, the one alone too: six times larger is as printed."""
    return replace(BASE, per_machine=of_each, alone=of_each)


RATES = (1, 10, 25, 100)
EXTRA_PASS = JOB.cost / (JOB.cost - 1)
VARIED: dict[str, dict[str, Case]] = {
    "network, Gbit/s": {str(g): replace(BASE, gigabits=g) for g in RATES[1:]},
    "batch of a machine": {str(b): batches(b) for b in (128, 256, 1024, 2048)},
    "gradients": {
        name: replace(BASE, bits=bits, exchange=exchange)
        for name, (bits, exchange) in list(CODES.items())[1:]
    },
    "share of the line": {f"{s:g}": replace(BASE, share=s) for s in (0.5, 0.7, 1.0)},
    "overlap": {f"{o:g}": replace(BASE, overlap=o) for o in (0.5, 1.0)},
    "seconds a message": {f"{m:g}": replace(BASE, message=m) for m in (0.0, 0.0002)},
    "compute of an image": {
        "1.1 (waiting for the slowest)": replace(BASE, slower=1.1),
        f"{EXTRA_PASS:.2f} (one machine without the clean pass)": replace(BASE, slower=EXTRA_PASS),
    },
}
SOLVED: dict[str, tuple[Callable[[float], Case], float, float]] = {
    "batch of a machine": (batches, 16, 4096),
    "share of the line": (lambda v: replace(BASE, share=v), 0.01, 1.0),
    "seconds a message": (lambda v: replace(BASE, message=v), 0.0, 0.01),
    "compute of an image": (lambda v: replace(BASE, slower=v), 1.0, 6.0),
}


def print_prediction() -> None:
    image = BASE.compute().seconds_per_image
    hours, waiting = BASE.hours()
    print("## Six machines, from the time of one\n")
    print(
        f"One machine: {HOURS} h x {SPEED_UP} = {JOB.hours:.1f} h, {JOB.epochs:g} epochs of "
        f"{JOB.images:,} images on {JOB.gpus} GPUs: {1e3 * image:.1f} ms a GPU and image, "
        f"{JOB.cost:.2f} passes, so {JOB.cost / image:.0f} passes/s a GPU.\n"
    )
    print(f"The model is given that {BASE.in_words()}.\n")
    print(
        f"**Predicted: {hours:.1f} h ({waiting:.1f} h of them waiting for gradients), "
        f"{BASE.speed_up():.2f}x; printed: {HOURS} h, {SPEED_UP}x.** {verdict(BASE)}\n"
    )
    print("| one assumption changed | to | speed-up | does it say 3.1x? |\n|---|---|---|---|")
    for name, cases in VARIED.items():
        for value, case in cases.items():
            print(f"| {name} | {value} | {case.speed_up():.2f} | {verdict(case)} |")
    print("\n3.1x comes out exactly, everything else as assumed, where\n")
    for name, (case, low, high) in SOLVED.items():
        value = brentq(lambda v, case=case: case(v).speed_up() - SPEED_UP, low, high)
        print(f"- {name} is {value:.3g}")


def verdict(case: Case) -> str:
    """Two printed digits are good to 1.6 %; a model this coarse gets a twentieth."""
    off = case.speed_up() / SPEED_UP - 1
    return "yes, within 5 %" if abs(off) <= 0.05 else f"no: {100 * off:+.0f} %"


def print_grid(base: Case) -> None:
    print("| gradients | overlap | " + " | ".join(f"{rate} Gbit/s" for rate in RATES) + " |")
    print("|---|---|" + "---|" * len(RATES))
    for name, (bits, exchange) in CODES.items():
        for overlap in (0.0, 0.5, 1.0):
            case = replace(base, bits=bits, exchange=exchange, overlap=overlap)
            cells = [f"{replace(case, gigabits=rate).speed_up():.2f}" for rate in RATES]
            print(f"| {name} | {overlap:g} | " + " | ".join(cells) + " |")


def print_check() -> None:
    """Rows that nothing here was fitted to, though of another network and data set."""
    line = Link(1e9, HEADERS)
    gradient = Gradient(11_173_962)
    print("\n## Rows that nothing was fitted to\n")
    print(
        "A reproduction of DAT on 1 Gbit/s (PreActResNet18, CIFAR-10 and 500,000 more images, one "
        "P100 a machine) took about 600 s an epoch on 4 machines, 300 s on 8. From the 600 s:\n"
    )
    print("| if 2,048 images are a batch of | waiting, of 600 s | predicted for 8 | measured |")
    print("|---|---|---|---|")
    for label, four, eight in (("each machine", 8192, 16384), ("all machines", 2048, 2048)):
        small, large = (Cluster(k, 1, line, INSIDE) for k in (4, 8))
        waiting = 550_000 / four * small.exchange(gradient)
        image = seconds_per_image(600 * four / 550_000, gradient, small, batch=four, backward=2 / 3)
        parts = update(Compute(image), gradient, large, batch=eight)
        print(f"| {label} | {waiting:.0f} s | {550_000 / eight * parts.seconds:.0f} s | 300 s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, nargs="+", help="JSON files of gradient_traffic.py")
    parser.add_argument("--out", type=Path, default=Path("scaling.svg"))
    options = parser.parse_args()
    fitted = None
    if options.rows:
        entries = [entry for path in options.rows for entry in json.loads(path.read_text())]
        fitted = fit([Row.of(entry) for entry in entries])
        print_fit(fitted)
    print_prediction()
    if fitted:
        share, overlap = (fitted.values.get(n, UNKNOWN[n][0]) for n in ("line's share", "overlap"))
        cases = replace(BASE, share=share), replace(BUCKETED, share=share, overlap=overlap)
        print(f"\nWith the share of the line fitted above: {cases[0].speed_up():.2f}x;")
        print(f"in buckets, with the overlap fitted above too: {cases[1].speed_up():.2f}x.")
    print(
        f"\n## Speed-up of {BASE.machines} machines, {BASE.per_machine} images each, in buckets\n"
    )
    print_grid(BUCKETED)
    print_check()
    print("\n## Extrapolation: 64 machines, in buckets\n\nNobody measured this, and the model says")
    print("nothing of what becomes of accuracy. As many epochs; 512 images each (32,768):\n")
    print_grid(replace(BUCKETED, machines=64))
    print("\n48 images each, the batch of 3,072 kept:\n")
    print_grid(replace(BUCKETED, machines=64, per_machine=48))
    draw(fitted, options.out)
    print(f"\n{options.out}")


def draw(fitted: Fit | None, out: Path) -> None:
    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "scaling"  # the same figures give the same file
    panels = 3 if fitted else 2
    canvas, axes = pyplot.subplots(1, panels, figsize=(5.6 * panels, 4.8), layout="constrained")
    draw_varied(axes[0])
    draw_machines(axes[1])
    if fitted:
        draw_fit(axes[2], fitted)
    canvas.savefig(out, metadata={"Date": None})


def draw_varied(axis: Axes) -> None:
    """One assumption changed at a time; each bar goes from the base case to what comes of it."""
    bars = [
        (f"{name}: {value.partition(' (')[0]}", case.speed_up())
        for name, cases in VARIED.items()
        for value, case in cases.items()
    ]
    for place, (_, value) in enumerate(reversed(bars)):
        axis.barh(place, value - BASE.speed_up(), left=BASE.speed_up(), color="C0", height=0.6)
    axis.set_yticks(range(len(bars)), [label for label, _ in reversed(bars)], fontsize=8)
    axis.axvline(BASE.speed_up(), color="black", linewidth=0.8, label="as assumed")
    axis.axvline(SPEED_UP, color="C3", linestyle="--", label="printed")
    axis.set(xlabel="speed-up of 6 machines", xlim=(1, BASE.machines))
    axis.legend(loc="lower left", fontsize=8)


def draw_machines(axis: Axes) -> None:
    counts = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    axis.plot(counts, counts, color="grey", linewidth=0.8, label="as many times as machines")
    lines: list[tuple[str, float]] = [
        ("fp32", 1),
        ("8 bits, one-sided", 1),
        ("8 bits, two-sided", 1),
        ("fp32", 10),
        ("fp32", 100),
    ]
    for (name, rate), marker in zip(lines, "osD^v", strict=True):
        bits, exchange = CODES[name]
        case = replace(BUCKETED, gigabits=rate, bits=bits, exchange=exchange)
        speed_ups = [replace(case, machines=count).speed_up() for count in counts]
        label = f"{name}, {rate:g} Gbit/s"
        axis.plot(counts, speed_ups, marker=marker, markersize=4, label=label)
    axis.plot(BASE.machines, SPEED_UP, "X", color="C3", markersize=9, zorder=5, label="printed")
    axis.axvspan(BASE.machines, 70, color="grey", alpha=0.12, linewidth=0, label="extrapolated")
    axis.set(
        xlabel="machines of 6 GPUs, 512 images each, gradients in buckets",
        ylabel="speed-up",
        xlim=(0.9, 70),
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.legend(loc="upper left", fontsize=8)


if __name__ == "__main__":
    main()
