"""What a detector is worth, as entries of results.json: mean average precision and COCO-C."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from gratis.data.coco_c import Place, Shown, generated, stored
from gratis.data.corruptions import COMMON, PACKAGE, SEVERITIES, library
from gratis.data.scenes import Scenes
from gratis.data.shifted import Asked
from gratis.evaluate.detection import AREAS, average_precision, judge
from gratis.files import write_atomically
from gratis.recipe import Recipe
from gratis.unfinished import Unfinished, fingerprint

Entry = dict[str, Any]
Tell = Callable[[int, int, str], None]
"""(images done, images in all, what is being looked at)."""

COCO_C = "coco-c"
RULES = (
    "COCO's: mean over classes and IoU 0.50 to 0.95, 100 boxes of a class in an image; scores "
    "above 0.05, suppression within a class above IoU 0.5; in pixels of the original images"
)
CELLS = "cells.json"


def precision_entry(
    model: nn.Module, images: Any, recipe: Recipe, at: tuple[str, int], tell: Tell
) -> Entry:
    """Mean average precision on the images as they are, and what it was counted on.

    at: the checkpoint's name, and the update that it was written at.
    """
    assert isinstance(images, Scenes)  # as in training
    note, count = "mean average precision", len(images)
    tell(0, count, note)
    found = average_precision(
        model, images, batch_of(recipe), progress=lambda done: tell(done, count, note)
    )
    crowds = sum(int(boxes[:, 6].sum()) for boxes in images.truth)
    return {
        "checkpoint": at[0],
        "update": at[1],
        "weights": fingerprint(model),
        "images": {"split": images.split, "start": 0, "count": count},
        "trained_on": images.split == "train",
        "input_pixels": images.side,
        "map": found.overall,
        "map_50": found.at_50,
        "map_75": found.at_75,
        **{f"map_{area}": found.areas[area] for area in AREAS},
        "boxes": {
            "judged": sum(map(len, images.truth)) - crowds,
            "crowds": crowds,
            "clipped": images.clipped,
            "degenerate": images.degenerate,
        },
        "rules": RULES,
        "judge": judge(),
        "precision": "float32",
        "seconds": found.seconds,
    }


def batch_of(recipe: Recipe) -> int:
    """How many images are looked at together."""
    return recipe.evaluation.batch_size or recipe.data.batch_size


def coco_c(
    model: nn.Module,
    images: Any,
    asked: Asked,
    batch_size: int,
    unfinished: Callable[[Entry], Unfinished],
    tell: Tell,
) -> tuple[Entry, Unfinished]:
    """Average precision under each corruption at each severity, its mean, and that over the clean.

    images: as they are.  asked: which corruptions, and where their files are if they are not made
    here.  unfinished: where the answers to a question are kept until all are there.
    mpc: mean performance under corruption, over the 15 corruptions that count; rpc: mpc over the
    clean precision. Source: Michaelis 2019.
    Differs from its code: each image has a seed of its own, where that takes what numpy's global
    generator holds; severity 5 is made as well, which its command line leaves out.

    Raises ValueError for images without boxes, and where `asked` finds no file.
    """
    assert isinstance(images, Scenes)  # as in training
    if asked.limit is not None:
        images = images.select(torch.arange(min(asked.limit, len(images))))
    lacking: list[str] = []
    with ExitStack() as held:
        if asked.root is None:
            about: Entry = {"source": "generated", "library": PACKAGE, "version": library()}
            shown = held.enter_context(generated(images, asked.grid))
        else:
            about = {"source": str(asked.root)}
            shown, lacking = stored(images, asked.grid, asked.root)
        if not shown or (lacking and not asked.partial):
            some = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" * (len(lacking) > 3))
            raise ValueError(
                f"--shift coco-c: {asked.root} lacks {some}"
                + ("; --partial evaluates what there is and says so" if shown else "")
            )
        about["preprocessing"] = (
            f"the run's {images.split} images of {images.name}, corrupted in their own size, then "
            f"fitted into {images.side} px"
        )
        kept = unfinished({"about": about, "images": [images.fingerprint, len(images)]})
        found = dict(_precisions(model, images, shown, batch_size, kept, tell))
    clean = found.pop(CLEAN)
    if clean is None:
        raise ValueError("--shift coco-c: none of the images has a box, so nothing can be found")
    short = [f"lacks {', '.join(lacking)}"] * bool(lacking)
    if len(asked.severities) < len(SEVERITIES):
        short.append(f"severities {', '.join(map(str, sorted(asked.severities)))} alone")
    if asked.limit is not None:
        short.append(f"at most {asked.limit} images a cell")
    entry = {
        **about,
        **({"partial": short} if short else {}),
        **({"limit": asked.limit} if asked.limit is not None else {}),
        **({"lacking": True} if lacking else {}),
        "images_per_cell": len(images),
        "trained_on": images.split == "train",
        "rules": RULES,
        "judge": judge(),
        "precision": "float32",
        **_means(found, clean),
    }
    return entry, kept


CLEAN: Place = ("clean", 0)
"""The place of the images as they are among the cells."""


def _means(found: Mapping[Place, float | None], clean: float) -> Entry:
    cells: dict[str, dict[str, float]] = {}
    for (corruption, severity), precision in found.items():
        assert precision is not None  # the boxes are those of the clean images
        cells.setdefault(corruption, {})[str(severity)] = precision
    counted = [p for (name, _), p in found.items() if name in COMMON and p is not None]
    mean = sum(counted) / len(counted) if counted else None
    return {
        "clean_map": clean,
        "maps": cells,
        "mpc": mean,
        "mpc_cells": len(counted),
        "rpc": mean / clean if mean is not None and clean else None,
    }


def _precisions(
    model: nn.Module,
    images: Scenes,
    shown: Mapping[Place, Shown],
    batch_size: int,
    unfinished: Unfinished,
    tell: Tell,
) -> Iterator[tuple[Place, float | None]]:
    """Of the clean images, then of every cell, each kept as soon as it is there."""
    path, each = unfinished.directory / CELLS, len(images)
    kept: dict[str, float | None] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    work: list[tuple[Place, Shown | None]] = [(CLEAN, None), *shown.items()]
    total = len(work) * each
    for number, (place, pixels) in enumerate(work):
        key, before = f"{place[0]} {place[1]}", number * each
        if key not in kept:
            note = f"{COCO_C}: {place[0]} {place[1] or ''}".strip()
            tell(before, total, note)

            def done(images: int, before: int = before, note: str = note) -> None:
                tell(before + images, total, note)

            found = average_precision(model, images, batch_size, pixels=pixels, progress=done)
            kept[key] = found.overall
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(kept).encode())
        yield place, kept[key]
