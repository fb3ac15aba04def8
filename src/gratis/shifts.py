"""Evaluating a run's checkpoint on images from another distribution, into its results.json."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from gratis.answers import origin
from gratis.assess import Progress, described, nowhere, split_for, trained
from gratis.data import Images
from gratis.data.cells import Batch
from gratis.data.images import first_of
from gratis.data.shifted import Asked, Shift, opened
from gratis.detection import COCO_C, batch_of, coco_c
from gratis.evaluate.shift import Answer, answer, corruption_figures, normalised
from gratis.files import write_atomically
from gratis.origins import fingerprint as images_of
from gratis.recipe import from_plain
from gratis.run import Run
from gratis.setting import pick_device
from gratis.unfinished import Unfinished, fingerprint

Entry = dict[str, Any]
CLEAN = ("clean", 0)
"""The place of the run's own test images among the cells."""

CELLS = "cells.json"


def shift_run(
    run: Run,
    asked: Sequence[Asked],
    checkpoint: str | None = None,
    progress: Progress = nowhere,
) -> list[Entry]:
    """Evaluate a run on each shift, merge the outcomes into its results.json and return them.

    checkpoint: its name; the recipe's if None. The same shift and checkpoint as an earlier
    evaluation replaces it, but a part of a shift stands beside all of it. One that was interrupted
    goes on with the cell that it was at.
    Raises ValueError for what `gratis.data.shifted.opened` refuses, before anything is evaluated
    on that shift; what was evaluated before it is kept.
    """
    recipe = from_plain(run.recipe)
    checkpoint = checkpoint or recipe.evaluation.checkpoint
    state, warnings = run.load_checkpoint(checkpoint)
    images = split_for(recipe, state)
    results = described(run, recipe, images, state, checkpoint, warnings)
    origins = origin(recipe, images, results.get("warnings", []))
    model = trained(recipe, images, state).to(pick_device(recipe.engine.device))
    if recipe.engine.channels_last:
        model = model.to(memory_format=torch.channels_last)
    of = {
        "checkpoint": checkpoint,
        "update": state["updates"],
        "weights": fingerprint(model),
    }
    entries = []
    for one in asked:
        if (one.name == COCO_C) != recipe.detects:
            raise ValueError(
                f"--shift {one.name}: this run finds {'boxes' if recipe.detects else 'classes'}; "
                f"{COCO_C} is for runs with task.name=detection, all others for classification"
            )
        judged = _boxes if recipe.detects else _evaluated
        entry, unfinished = judged(run, model, images, one, of, progress)
        entry |= origins
        merge_shift(results, entry)
        run.write_results(results)
        unfinished.done()
        entries.append(entry)
    return entries


def merge_shift(results: Entry, found: Entry) -> None:
    """Put `found` in the place of the entry of the same shift, checkpoint and test images, or at
    the end. All of a shift and a part of it stand side by side.
    """

    def key(entry: Entry) -> tuple[str, str, str, bool]:
        images = images_of(results, entry)
        return entry["shift"], entry["checkpoint"], images, "partial" in entry

    entries = results.setdefault("shifts", [])
    same = [key(entry) for entry in entries]
    if key(found) in same:
        entries[same.index(key(found))] = found
    else:
        entries.append(found)


def _evaluated(
    run: Run,
    model: nn.Module,
    images: Images,
    asked: Asked,
    of: Entry,
    progress: Progress,
) -> tuple[Entry, Unfinished]:
    """What results.json says of one shift, and where it was kept until then."""
    began, recipe = time.monotonic(), from_plain(run.recipe)
    clean = images
    if asked.name == "corruptions" and asked.limit is not None:
        clean = images = first_of(images, asked.limit)
    with opened(asked, images, recipe.data.test_resize) as shift:
        if shift.columns is not None:
            clean = images.select(torch.isin(images.y, shift.columns).nonzero().flatten())
        if asked.limit is not None and len(clean):
            clean = first_of(clean, asked.limit)
        size = recipe.evaluation.batch_size or recipe.data.batch_size
        unfinished = _unfinished(run, asked, shift, clean, of)
        answers = _answers(model, shift, clean, size, _Kept(unfinished), progress)
    before = answers.pop(CLEAN)
    entry = {
        "shift": asked.name,
        **of,
        **shift.about,
        **({"partial": list(shift.partial)} if shift.partial else {}),
        **({"limit": asked.limit} if asked.limit is not None else {}),
        **({"lacking": True} if shift.lacking else {}),
        "images_per_cell": max(len(cell) for cell in shift.cells),
        "precision": "float32",
        "seconds": time.monotonic() - began,
    }
    if shift.cells[0].severity == 0:
        (found,) = answers.values()
        return {**entry, **_rendition(found, before, shift)}, unfinished
    figures = corruption_figures(answers)
    if asked.name == "imagenet-c":
        figures |= normalised(figures, before.wrong / before.images if before.images else None)
    if before.images:
        figures["clean"] = before.error()
    return {**entry, **figures}, unfinished


def _boxes(
    run: Run,
    model: nn.Module,
    images: Images,
    asked: Asked,
    of: Entry,
    progress: Progress,
) -> tuple[Entry, Unfinished]:
    """As `_evaluated`, of a run that finds boxes, on COCO-C."""
    began, recipe = time.monotonic(), from_plain(run.recipe)
    entry, unfinished = coco_c(
        model,
        images,
        asked,
        batch_of(recipe),
        lambda question: Unfinished.of(
            run.unfinished, {**of, **question, "shift": asked.name, "torch": torch.__version__}
        ),
        partial(progress, "shift"),
    )
    seconds = time.monotonic() - began
    return {"shift": asked.name, **of, **entry, "seconds": seconds}, unfinished


def _rendition(found: Answer, before: Answer, shift: Shift) -> Entry:
    """Accuracy on renditions of images, and on the run's own ones of the same classes."""
    entry: Entry = {"accuracy": found.accuracy()}
    if shift.columns is not None:
        entry |= {"classes": len(shift.columns), "unmasked": found.accuracy(unmasked=True)}
    if before.images:
        clean = before.accuracy()
        entry |= {"clean": clean, "gap": clean["accuracy"] - entry["accuracy"]["accuracy"]}
    return entry


def _answers(
    model: nn.Module,
    shift: Shift,
    clean: Images,
    size: int,
    kept: "_Kept",
    progress: Progress,
) -> dict[tuple[str, int], Answer]:
    """Of the clean images, then of every cell, each kept as soon as it is there."""
    total = len(clean) + sum(len(cell) for cell in shift.cells)
    work = [(CLEAN, len(clean), _batches(clean, size))]
    work += [
        ((cell.corruption, cell.severity), len(cell), cell.batches(size)) for cell in shift.cells
    ]
    answers, done = {}, 0
    for place, count, batches in work:
        if (found := kept.get(place)) is None:
            note = f"{shift.name}: {place[0]} {place[1] or ''}".strip()
            progress("shift", done, total, note)
            before = done

            def tell(images: int, before: int = before, note: str = note) -> None:
                progress("shift", before + images, total, note)

            found = answer(model, batches, expected=count, columns=shift.columns, progress=tell)
            kept.put(place, found)
        answers[place] = found
        done += count
    progress("shift", total, total, shift.name)
    return answers


def _batches(images: Images, size: int) -> Iterator[Batch]:
    for start in range(0, len(images), size):
        chosen = slice(start, start + size)
        yield Batch(images.pixels(chosen), images.y[chosen])


def _unfinished(run: Run, asked: Asked, shift: Shift, clean: Images, of: Entry) -> Unfinished:
    """By what a cell's answer depends on: not by which others are asked for."""
    question = {
        **of,
        **{"shift": asked.name, "about": shift.about, "images": len(shift.cells[0])},
        "root": None if asked.root is None else str(asked.root.resolve()),
        "clean": [clean.fingerprint, run.recipe_sha256],
        "torch": torch.__version__,
    }
    return Unfinished.of(run.unfinished, question)


class _Kept:
    """The answers of an interrupted evaluation, in one small file."""

    def __init__(self, unfinished: Unfinished) -> None:
        self.path = unfinished.directory / CELLS
        self.answers: dict[str, Entry] = {}
        if self.path.exists():
            self.answers = json.loads(self.path.read_text("utf-8"))

    def get(self, place: tuple[str, int]) -> Answer | None:
        kept = self.answers.get(f"{place[0]} {place[1]}")
        return None if kept is None else Answer(**kept)

    def put(self, place: tuple[str, int], found: Answer) -> None:
        self.answers[f"{place[0]} {place[1]}"] = asdict(found)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.answers).encode())
