"""Whether images read from disk keep up with training, and what memory they take.

    python benchmarks/streaming.py --root IMAGENETTE --cache DIR [--threads 2] [--images 1024]

ROOT holds train/CLASS/* and val/CLASS/*. Three tables:

- decoding: images a second into the store (each file once in a store's life), bytes an image;
- reading: images a second that a StreamLoader hands out, augmented, from the store and from the
  files themselves, for each phase of the recipe fast-imagenet, beside the images a second that an
  update of FGSM-RS takes on this machine with the network of --model, and their ratio: above 1
  the images wait for the network, below 1 the network for the images;
- memory: what the process holds besides files mapped into it, after an epoch over a quarter, half
  and all of the images.

Rates are medians of --rounds rounds in turns.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from measuring import held, setting

from gratis import recipe as recipes
from gratis.budget import Plan
from gratis.data import Streamed, StreamLoader
from gratis.data.streamed import Keeping
from gratis.passes import Batch
from gratis.setting import learner, network, pick_device

AUGMENT = ("resized-crop", "flip")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="emptied before and after")
    parser.add_argument("--images", type=int, default=1024, help="read in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--updates", type=int, default=2, help="timed in each round")
    parser.add_argument("--batch", type=int, default=16, help="of the timed updates")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.cache.exists() and any(options.cache.iterdir()):
        parser.error(f"{options.cache} is not empty; it would be emptied")
    torch.set_num_threads(options.threads)
    print(f"{setting()}; {options.threads} threads read\n")
    stages = recipes.load("fast-imagenet", [f"data.root={options.root}"]).stages
    kept = Keeping(options.root, options.cache, options.threads)
    try:
        images, sources = decoding(kept, [s.stored for s in stages if isinstance(s.stored, int)])
        sources |= kept.training(("files",), 224, None)[1]
        print(
            f"\n| phase | read, images/s | update of {options.model}, images/s | ratio |\n"
            "|---|---|---|---|"
        )
        for stage in stages:
            assert stage.stored is not None
            assert stage.image_size is not None
            phase = replace(images, source=sources[stage.stored], image_size=stage.image_size)
            of_loader = reading(phase, options)
            of_update = updating(stage.image_size, options)
            rates = [(of_loader(), of_update()) for _ in range(options.rounds)]
            read, update = (statistics.median(column) for column in zip(*rates, strict=True))
            where = f"{stage.stored} px" if isinstance(stage.stored, int) else "files"
            print(
                f"| {stage.image_size} px from {where} | {read:.0f} | {update:.1f} "
                f"| {read / update:.1f} |",
                flush=True,
            )
        memory(images, options)
    finally:
        shutil.rmtree(options.cache, ignore_errors=True)


def decoding(kept: Keeping, sides: list[int]) -> tuple[Streamed, dict]:
    """The training images, and each side's source, decoded one side after the other."""
    print("| shorter side | decoded, images/s | kB an image |\n|---|---|---|")
    sources: dict = {}
    for side in sides:
        began = time.perf_counter()
        images, source = kept.training((side,), 224, None)
        seconds = time.perf_counter() - began
        stored = sum(path.stat().st_size for path in kept.directory.glob(f"train-{side}-*/*.u8"))
        count = len(images)
        print(f"| {side} | {count / seconds:.0f} | {stored / count / 1e3:.0f} |", flush=True)
        sources |= source
    return images, sources


def reading(images: Streamed, options: argparse.Namespace) -> Callable[[], float]:
    loader = StreamLoader(images, 64, seed=0, augment=AUGMENT, workers=options.threads)

    def rate() -> float:
        began, seen = time.perf_counter(), 0
        for x, _ in loader:
            seen += len(x)
            if seen >= options.images:
                break
        return seen / (time.perf_counter() - began)

    return rate


def updating(side: int, options: argparse.Namespace) -> Callable[[], float]:
    """Images a second of FGSM-RS as the recipe has it, with nothing to read."""
    recipe = recipes.load(
        "fast-imagenet", [f"model.name={options.model}", f"data.image_size={side}"]
    )
    device = pick_device("auto")
    x = torch.rand(options.batch, 3, side, side, device=device)
    y = torch.arange(options.batch, device=device) % 10
    model = network(recipe, _Described()).to(device)
    engine, method = learner(recipe, model, Plan(1000, 0)), recipe.build_method()
    engine.fit(method, Batch(x, y))

    def rate() -> float:
        began = time.perf_counter()
        for _ in range(options.updates):
            engine.fit(method, Batch(x, y))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return options.updates * options.batch / (time.perf_counter() - began)

    return rate


class _Described:
    """Ten classes of colour images."""

    classes = tuple(str(number) for number in range(10))
    shape = (3, 224, 224)


def memory(images: Streamed, options: argparse.Namespace) -> None:
    print("\n| images | held after an epoch, MB |\n|---|---|")
    for share in (4, 2, 1):
        some = images.select(torch.arange(len(images) // share))
        small = replace(some, image_size=64)
        for _ in StreamLoader(small, 64, seed=0, augment=AUGMENT, workers=options.threads):
            pass
        print(f"| {len(some)} | {held() / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
