"""What a large batch costs robust training, and what layer-wise rates give back, at equal passes.

    python benchmarks/large_batch.py --root CIFAR --passes 25 --seeds 0 1 2
    python benchmarks/large_batch.py --passes 40 --batches 512 1024         # on digits, in minutes

CIFAR holds the images as folders train/CLASS and test/CLASS. FGSM-RS trains a small network with
SGD at batch 128, and at each of --batches with four optimizers:

    sgd          the same grid of rates as at batch 128, no warm-up
    sgd-scaled   the same rates times batch / 128, climbing to them in the first tenth of the run
    lars, lamb   layer-wise rates, with the same warm-up

All rows see the same images as often, with a rate that falls along a cosine, so that a larger
batch has fewer updates. Every row's rate is chosen among as many, by robust accuracy on 1,000
held-out training images after whole runs with the first seed; the other seeds train at that rate
alone. No test image takes part in any choice. "End of grid" beside a rate says that a better one
may lie beyond. One run directory for each row, rate and seed; what is finished is not run again.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import setting

from gratis import recipe as recipes
from gratis import train
from gratis.journal import DivergedError
from gratis.run import Run

SMALL = 128
WARM_UP = "schedule.warmup=0.1"
SGD = ("optimizer.weight_decay=5e-4",)
KINDS: dict[str, tuple[tuple[float, ...], tuple[str, ...]]] = {
    "sgd": ((0.05, 0.15, 0.45, 1.35), SGD),
    "sgd-scaled": ((0.05, 0.15, 0.45, 1.35), (*SGD, f"optimizer.per_images={SMALL}", WARM_UP)),
    "lars": ((1, 3, 9, 27), (*SGD, "optimizer.name=lars", WARM_UP)),
    "lamb": (
        (0.01, 0.03, 0.09, 0.27),
        ("optimizer.weight_decay=1e-4", "optimizer.name=lamb", WARM_UP),
    ),
}
"""(rates to choose from, settings): as many rates for each, or the comparison would be rigged."""
COMMON = (
    "method=fgsm-rs",
    "data.drop_last=true",
    "schedule.shape=cosine",
    "guard.mode=off",
    "check.every=1e6",  # held-out images are looked at once, at the end
    "check.images=1000",
    "check.attack=pgd-10",
    "evaluation.attacks=[pgd-10]",
)
CIFAR = ("data.name=folder", "data.holdout=1000", "model.name=resnet9", "model.options.width=16")
DIGITS = ("data.holdout=300",)


@dataclass(frozen=True)
class Row:
    kind: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.batch}"

    @property
    def rates(self) -> tuple[float, ...]:
        return KINDS[self.kind][0]


@dataclass(frozen=True)
class Trial:
    """One run of a row, and how it did on held-out images; neither if its loss diverged."""

    rate: float
    run: Run | None
    robust: float = -1.0
    clean: float = -1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="folders of images; scikit-learn's digits without it")
    parser.add_argument("--passes", type=float, default=25.0, help="FGSM-RS takes 5/3 an epoch")
    parser.add_argument("--batches", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="such as lamb-2048; all of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, help="training images, held-out ones among them")
    parser.add_argument("--images", type=int, default=1000, help="test images, from the first on")
    parser.add_argument("--out", type=Path, default=Path("runs") / "large-batch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    rows = [Row("sgd", SMALL), *(Row(kind, b) for b in options.batches for kind in KINDS)]
    if options.rows is not None:
        if unknown := set(options.rows) - {row.name for row in rows}:
            parser.error(f"no row {', '.join(unknown)}; rows: {', '.join(r.name for r in rows)}")
        rows = [row for row in rows if row.name in options.rows]
    torch.set_num_threads(options.threads)
    print(setting(), flush=True)
    print(
        "\n| row | updates | rate, of those tried | its highest rate | seed | held-out PGD-10 % "
        "| clean % (95 %) | PGD-10 % (95 %) |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for row in rows:
        best = chosen([trained(options, row, rate, options.seeds[0]) for rate in row.rates])
        for seed in options.seeds:
            print(line(row, trained(options, row, best.rate, seed), seed), flush=True)


def chosen(trials: Sequence[Trial]) -> Trial:
    """The trial that did best on held-out images: by robust, then by clean accuracy."""
    return max(trials, key=lambda trial: (trial.robust, trial.clean))


def trained(options: argparse.Namespace, row: Row, rate: float, seed: int) -> Trial:
    """The run is made, or gone on with, where it is not finished."""
    out: Path = options.out / row.name / f"rate-{rate:g}-seed-{seed}"
    diverged = out.with_name(f"{out.name}-diverged.txt")
    if diverged.exists():
        return Trial(rate, None)
    if not out.exists() or Run.open(out).results is None:
        print(f"{out} ...", file=sys.stderr, flush=True)
        recipe = recipes.load("cifar10" if options.root else "digits", settings(options, row))
        values = recipe.plain()
        values["seed"], values["optimizer"]["learning_rate"] = seed, rate
        try:
            train.run(values, out, resume=out.exists())
        except DivergedError as error:
            diverged.write_text(f"{error}\n")
            return Trial(rate, None)
    run = Run.open(out)
    check = [record for record in run.log() if record["kind"] == "check"][-1]
    return Trial(rate, run, check["robust_accuracy"], check["clean_accuracy"])


def settings(options: argparse.Namespace, row: Row) -> list[str]:
    limit = [] if options.limit is None else [f"data.limit={options.limit}"]
    return [
        *COMMON,
        *((*CIFAR, f"data.root={options.root}") if options.root else DIGITS),
        *KINDS[row.kind][1],
        *limit,
        f"data.batch_size={row.batch}",
        f"budget.passes={options.passes}",
        f"evaluation.limit={options.images}",
    ]


def line(row: Row, trial: Trial, seed: int) -> str:
    """One line of the table."""
    place = "end of grid" if trial.rate in (row.rates[0], row.rates[-1]) else "inside"
    tried = f"{trial.rate:g} of {', '.join(f'{rate:g}' for rate in row.rates)} ({place})"
    if trial.run is None:
        return f"| {row.name} | | {tried} | | {seed} | | diverged | diverged |"
    results = trial.run.results
    assert results is not None
    rate = recipes.from_plain(trial.run.recipe).optimizer.rate(row.batch)
    entry = results["evaluations"][0]
    return (
        f"| {row.name} | {results['budget']['updates']} | {tried} | {rate:g} | {seed} "
        f"| {100 * trial.robust:.1f} | {percent(entry['clean'])} | {percent(entry['robust'])} |"
    )


def percent(share: dict[str, Any]) -> str:
    low, high = share["ci95"]
    return f"{100 * share['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


if __name__ == "__main__":
    main()
