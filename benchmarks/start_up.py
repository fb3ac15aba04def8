"""From the command to the first update, and to an answer for those who only ask or mistype.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --recipe cifar10 --set data.root=DIR

Each in a process of its own, in turn, three rounds; median seconds, with the share of it that is
importing. Then the loader's share of an update's time, for the same recipe.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice

import torch
from measuring import setting

from gratis import recipe as recipes
from gratis.passes import Batch
from gratis.setting import build_loaders, learner, network, planned
from gratis.training_data import training_data

FIRST_UPDATE = """
import sys, time
from gratis import recipe, train
from gratis.learner import Learner
imported = time.time()
def first(self, **options):
    print(imported - float(sys.argv[1]), time.time() - float(sys.argv[1]), flush=True)
    sys.exit()
Learner.update = first
train.run(recipe.load(sys.argv[2], sys.argv[4:]), sys.argv[3])
"""
ROUNDS = 3
BATCHES = 20
LIMITS = {"--help": 1.0, "a mistyped recipe": 1.0, "first update": 10.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value")
    options = parser.parse_args()
    print(setting())
    taken: dict[str, list[float]] = {name: [] for name in LIMITS}
    imports = []
    for _ in range(ROUNDS):
        taken["--help"].append(seconds(["-m", "gratis", "--help"]))
        taken["a mistyped recipe"].append(seconds(["-m", "gratis", "train", "digit"]))
        with tempfile.TemporaryDirectory() as folder:
            where = [options.recipe, os.path.join(folder, "run"), *options.set]
            done = subprocess.run(
                [sys.executable, "-c", FIRST_UPDATE, str(time.time()), *where],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
        imported, updated = map(float, done.stdout.split())
        imports.append(imported)
        taken["first update"].append(updated)
    print("\n| what | seconds | at most |\n|---|---|---|")
    for name, limit in LIMITS.items():
        print(f"| {name} | {statistics.median(taken[name]):.2f} | {limit:g} |")
    print(f"\nof the first update's, importing: {statistics.median(imports):.2f}")
    print(
        f"the loader's share of an update ({options.recipe}): {loading(options):.2%}, at most 2 %"
    )


def seconds(arguments: list[str]) -> float:
    clock = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - clock


def loading(options: argparse.Namespace) -> float:
    """What making a batch takes, over that and learning from it."""
    recipe = recipes.load(options.recipe, options.set)
    data = training_data(recipe)
    method = recipe.build_method()
    loader = build_loaders(recipe, data, torch.device("cpu"))[0]
    model = network(recipe, data.training)
    method.bind(model, loader.images.pixels(slice(1)))
    engine = learner(recipe, model, planned(recipe, [loader], method))
    batches = loader.epoch(0)
    engine.fit(method, Batch(*next(batches)))
    making, learning = [], []
    for _ in islice(range(BATCHES), len(loader) - 1):
        clock = time.perf_counter()
        batch = Batch(*next(batches))
        making.append(time.perf_counter() - clock)
        clock = time.perf_counter()
        engine.fit(method, batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        learning.append(time.perf_counter() - clock)
    made = statistics.median(making)
    return made / (made + statistics.median(learning))


if __name__ == "__main__":
    main()
