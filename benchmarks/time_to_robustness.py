"""How robust a network can be made on CIFAR-10 in so many seconds of training on this machine.

    python benchmarks/time_to_robustness.py --root CIFAR --minutes 5 30
    python benchmarks/time_to_robustness.py --root CIFAR --minutes 0.25 --plain --images 10000 \\
        --attack pgd-50-10:bf16                                             # on a GPU

CIFAR holds the images as folders train/CLASS and test/CLASS. Rows: `quick` is the recipe
quick-cifar10; `published` is the recipe of Wong 2020 (`cifar10`: PreActResNet18, FGSM-RS), given
the same seconds on the same engine, its schedule over what they pay for; `--plain` adds that
recipe with its own 15 epochs in plain PyTorch, timed for the ratio. How many passes the seconds
pay for is found by timing a few updates before. Seconds run from the first update to the last;
checks and evaluation are left out, start-up, compiling and trying graphs stand beside them. Runs
that are there are not done again. No test image takes part in any choice: the last weights are
evaluated.
"""

import argparse
import statistics
import time
from itertools import chain, count, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import setting
from torch import Tensor

from gratis import Linf, capturing, clock, robust_accuracy, train
from gratis import recipe as recipes
from gratis.data import Loader
from gratis.passes import Batch
from gratis.recipe import Recipe
from gratis.run import Run
from gratis.setting import build_loaders, learner, network, pick_device, planned
from gratis.training_data import load_split, training_data

ROWS = {"quick": "quick-cifar10", "published": "cifar10"}
WARM, TIMED, AT_LEAST = 5, 10, 10.0
"""Updates (on a GPU, lots of them) that are not timed, how many are, and for how many seconds they
go on at least."""
SPARE = 0.9
"""Of the seconds asked for, since an update may take longer later than when it was timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 10.0, 20.0, 30.0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=1000, help="test images, from the first on")
    parser.add_argument("--attack", default="pgd-50-10", help="pgd-50-10:bf16 takes half as long")
    parser.add_argument("--out", type=Path, default=Path("runs") / "time-to-robustness")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="for every row")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(setting(), flush=True)
    columns = "row | seed | minutes | seconds | start-up | data passes | clean %"
    print(f"\n| {columns} | {options.attack} % | machine |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    seconds: dict[str, float] = {}
    for minutes in options.minutes:
        for row in options.rows:
            for seed in options.seeds:
                line, taken = trained(options, row, minutes, seed)
                print(line, flush=True)
                seconds[f"{row}, {minutes:g} minutes, seed {seed}"] = taken
    if options.plain:
        line, plain = published_in_plain_pytorch(options)
        print(f"{line}\n\nThe published recipe in plain PyTorch took so many times as long as")
        for name, taken in seconds.items():
            print(f"- {name}: {plain / taken:.2f}", flush=True)


def trained(options: argparse.Namespace, row: str, minutes: float, seed: int) -> tuple[str, float]:
    """One line of the table, and the seconds of its training; the run is made, or gone on with,
    where it is not finished.
    """
    out: Path = options.out / f"{row}-{minutes:g}-minutes-seed-{seed}"
    began, started = time.perf_counter(), "-"

    def watch(stage: str, done: int, total: int, note: str) -> None:
        nonlocal started
        if stage == "train" and done == 0:
            started = f"{time.perf_counter() - began:.0f}"

    if not out.exists():
        settings = [
            *on(options.root),
            f"seed={seed}",
            "guard.mode=off",
            "check.every=5",
            f"evaluation.limit={options.images}",
            f"evaluation.attacks=[{options.attack}]",
            "engine.graph=auto",
            *options.set,
        ]
        paid = affordable(recipes.load(ROWS[row], settings), 60 * minutes)
        began = time.perf_counter()
        train.run(
            recipes.load(ROWS[row], [*settings, f"budget.passes={paid}"]), out, progress=watch
        )
    elif Run.open(out).results is None:
        train.run(recipes.from_plain(Run.open(out).recipe), out, resume=True)
    results = Run.open(out).results
    assert results is not None
    budget, entry = results["budget"], results["evaluations"][0]
    low, high = (100 * bound for bound in entry["robust"]["ci95"])
    line = (
        f"| {row} | {seed} | {minutes:g} | {budget['seconds']:.0f} | {started} "
        f"| {budget['data_passes']:.2f} | {100 * entry['clean']['accuracy']:.1f} "
        f"| {100 * entry['robust']['accuracy']:.1f} ({low:.1f}-{high:.1f}) | {results['device']} |"
    )
    return line, float(budget["seconds"])


def on(root: str) -> list[str]:
    return ["data.name=folder", f"data.root={root}"]


def affordable(recipe: Recipe, seconds: float) -> float:
    """Passes per training image that so many seconds pay for, by the time of a few updates."""
    device = pick_device(recipe.engine.device)
    data = training_data(recipe)
    method = recipe.build_method()
    loader = build_loaders(recipe, data, device)[0]
    model = network(recipe, data.training).to(device)
    method.bind(model, loader.images.pixels(slice(1)))
    engine = learner(recipe, model, planned(recipe, [loader], method))
    if recipe.engine.compile == "on":
        engine.compile()
    capturing.choose(
        recipe.engine.graph,
        engine,
        method,
        batch=lambda: next(loader.epoch(0)),
        records=[],
        record=lambda *_, **found: print(f"graphs: {found['reason']}", flush=True),
    )
    batches = chain.from_iterable(loader.epoch(number) for number in count())
    # a GPU is to have the next update before it is done with one, as it has in a run
    together = 1 if device.type == "cpu" else 20
    taken: list[float] = []
    while len(taken) < WARM + TIMED or sum(taken[WARM:]) * together < AT_LEAST:
        began = clock.seconds(device)
        for x, y in islice(batches, together):
            engine.fit(method, Batch(x, y))
        taken.append((clock.seconds(device) - began) / together)
    thirds = sum(method.update_thirds(recipe.data.batch_size))
    updates = SPARE * seconds / statistics.median(taken[WARM:])
    return round(updates * thirds / (3 * len(data.training)), 3)


def published_in_plain_pytorch(options: argparse.Namespace) -> tuple[str, float]:
    """As `trained`, of Wong 2020's recipe as its code writes it, 15 epochs, here and now."""
    recipe = recipes.load("cifar10", on(options.root))
    device = pick_device("auto")
    data = training_data(recipe)
    loader = build_loaders(recipe, data, device)[0]
    model = network(recipe, data.training).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9, weight_decay=5e-4)
    epochs, eps, step = 15, 8 / 255, 10 / 255
    updates = epochs * len(loader)
    rates = torch.optim.lr_scheduler.CyclicLR(
        optimizer, 0.0, 0.2, step_size_up=updates // 2, step_size_down=updates - updates // 2,
    )  # fmt: skip
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def loss_at(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            logits: Tensor = model(x)
        return F.cross_entropy(logits.float(), y)

    model.train()
    began = clock.seconds(device)
    for _ in range(epochs):
        for x, y in loader:
            delta = torch.zeros_like(x).uniform_(-eps, eps)
            delta = ((x + delta).clamp(0, 1) - x).requires_grad_()
            scaler.scale(loss_at(x + delta, y)).backward()
            assert delta.grad is not None
            delta = (delta.detach() + step * delta.grad.sign()).clamp(-eps, eps)
            delta = (x + delta).clamp(0, 1) - x
            optimizer.zero_grad()
            scaler.scale(loss_at(x + delta, y)).backward()
            scaler.step(optimizer)
            scaler.update()
            rates.step()
    seconds = clock.seconds(device) - began
    test = load_split(recipe.data, "test").select(torch.arange(options.images))
    found = robust_accuracy(
        model, Loader(test, min(500, len(test)), seed=0), [options.attack], ball=Linf(eps)
    )
    clean, robust = found.correct[:, 0].double().mean(), found.robust.double().mean()
    line = (
        f"| published, plain PyTorch | 0 | - | {seconds:.0f} | - | {epochs} "
        f"| {100 * clean:.1f} | {100 * robust:.1f} | the same |"
    )
    return line, seconds


if __name__ == "__main__":
    main()
