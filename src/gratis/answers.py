"""What an evaluation leaves in a run's directory: entries of results.json, flags of each image,
pictures, adversarial points. No accuracy stands there without the protocol that measured it.
"""

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gratis.attacks import build_attack
from gratis.attacks.search import Part
from gratis.balls import Ball
from gratis.budget import Meter, passes_of
from gratis.data import Images
from gratis.evaluate import Robustness, clopper_pearson
from gratis.evaluate.answered import deciding
from gratis.merging import protocol
from gratis.names import spell_method
from gratis.recipe import Recipe
from gratis.run import Run
from gratis.setting import pick_device

SCHEMA = 1

Entry = dict[str, Any]


def header(run: Run, recipe: Recipe, images: Images) -> dict[str, Any]:
    """results.json before any evaluation.  images: all of the test split."""
    return {
        "schema": SCHEMA,
        "versions": _versions(),
        "device": _device(recipe),
        "seed": recipe.seed,
        "recipe_sha256": run.recipe_sha256,
        "data": {
            "name": images.name,
            "split": images.split,
            "fingerprint": images.fingerprint,
            "images": len(images),
            **({"note": images.note} if images.note else {}),
        },
        "method": spell_method(recipe.method),
        "evaluations": [],
    }


def origin(recipe: Recipe, images: Images, warnings: Sequence[str]) -> Entry:
    """What an entry says of itself, for a run may be evaluated on other images, devices and
    versions than the header's.  images: all of the test split.  warnings: of reading them and the
    checkpoint.
    """
    return {
        "fingerprint": images.fingerprint,
        "device": _device(recipe),
        "versions": _versions(),
        **({"warnings": list(warnings)} if warnings else {}),
    }


def _versions() -> Entry:
    return {
        "gratis": version("gratis"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _device(recipe: Recipe) -> str:
    device = pick_device(recipe.engine.device)
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{processor()} CPU, {torch.get_num_threads()} threads"


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    told = Path("/proc/cpuinfo")
    for line in told.read_text().splitlines() if told.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return str(platform.processor() or platform.machine())


# --- entries


def about(ball: Ball, images: Images, checkpoint: str) -> Entry:
    """What an outcome is of: threat, checkpoint, images."""
    return {
        "threat": {"norm": ball.norm, "eps": ball.eps},
        "checkpoint": checkpoint,
        "images": {"split": images.split, "start": 0, "count": len(images)},
    }


def each(found: Robustness, ball: Ball, classes: int, of: Entry) -> Iterator[Entry]:
    """An entry for each attack, measured alone on the images that are right when clean."""
    for place, name in enumerate(found.attacks, 1):
        yield {
            "attack": name,
            "parameters": build_attack(name).parameters(ball, classes),
            **of,
            "clean": share(found.correct[:, 0]),
            "robust": share(found.correct[:, place]),
            **_rejected(found.rejected[place - 1 : place]),
            **_cost(found, [place]),
            **_parts(found.parts[place - 1], found.correct[:, 0]),
        }


def in_turn(found: Robustness, of: Entry) -> Entry:
    """One entry for attacks that were each given what the ones before had left."""
    parts = [
        Part(
            name,
            found.correct[:, place - 1],
            found.correct[:, place - 1] & ~found.correct[:, place],
            found.seconds[place],
            found.meters[place],
        )
        for place, name in enumerate(found.attacks, 1)
    ]
    return {
        "attack": ", then ".join(found.attacks),
        "parameters": {"attacks": ", ".join(found.attacks), "each on": "what the last one left"},
        **of,
        "clean": share(found.correct[:, 0]),
        "robust": share(found.robust),
        **_rejected(found.rejected),
        **_cost(found, range(1, len(found.attacks) + 1)),
        **_parts(parts, found.correct[:, 0]),
    }


def union(found: Robustness, of: Entry) -> Entry:
    """The worst of several attacks, image by image."""
    return {"attacks": list(found.attacks), **of, "robust": share(found.robust)}


def share(correct: Tensor) -> Entry:
    count, total = int(correct.sum()), len(correct)
    return {
        "correct": count,
        "accuracy": count / total,
        "ci95": list(clopper_pearson(count, total)),
    }


def _rejected(counts: Sequence[int]) -> Entry:
    """How many successes of the attacks did not hold when they were looked at again, if any."""
    return {"rejected": sum(counts)} if sum(counts) else {}


def _cost(found: Robustness, places: Sequence[int]) -> Entry:
    """The clean pass and the attacks at `places`, as they were metered."""
    meter = Meter()
    for place in (0, *places):
        meter.add(found.meters[place])
    return {
        "precision": "float32",
        "seconds": sum(found.seconds[place] for place in (0, *places)),
        "forwards": meter.forwards + meter.probes,
        "backwards": meter.probes,
        "passes": passes_of(meter.thirds, len(found.robust)),
    }


def _parts(parts: Sequence[Part], clean: Tensor) -> Entry:
    """How many images each attack of several was given, broke and left standing."""
    standing, rows = int(clean.sum()), []
    for part in parts:
        standing -= int(part.broken.sum())
        rows.append(
            {
                "attack": part.attack,
                "images": int(part.given.sum()),
                "broken": int(part.broken.sum()),
                "standing": standing,
                "forwards": part.meter.forwards + part.meter.probes,
                "backwards": part.meter.probes,
                "seconds": part.seconds,
            }
        )
    return {"parts": rows} if rows else {}


# --- files beside it


def keep_per_image(run: Run, found: Robustness, entries: Sequence[Entry]) -> None:
    """Flags of every image: clean, robust, and which part of an attack broke it (-1: none)."""
    arrays = {}
    alone = len(entries) == len(found.attacks)
    for place, entry in enumerate(entries):
        name = _file_name(entry)
        entry["per_image"] = name
        arrays[f"{name}.clean"] = found.correct[:, 0].numpy()
        robust = found.correct[:, place + 1] if alone else found.robust
        arrays[f"{name}.robust"] = robust.numpy()
        if alone and found.parts[place]:
            broken = torch.stack([part.broken for part in found.parts[place]])
            by = torch.where(broken.any(0), broken.int().argmax(0), -1)
            arrays[f"{name}.broken_by"] = by.to(torch.int8).numpy()
    run.write_per_image(arrays)


def keep_points(run: Run, found: Robustness, entries: Sequence[Entry], images: Images) -> None:
    """Every adversarial point, as float32 and rounded to 8 bits, one file an entry: an attack, or
    several in turn, of which an image's point is that of the one that broke it, else of the last.
    """
    assert found.adversarial is not None
    alone = len(entries) == len(found.attacks)
    for place, entry in enumerate(entries):
        points = found.adversarial[place] if alone else deciding(found.correct, found.adversarial)
        entry["adversarial"] = run.write_adversarial(
            _file_name(entry),
            {
                "points": points.float().numpy(),
                "points_uint8": (points * 255).round().to(torch.uint8).numpy(),
                "label": images.y.cpu().numpy(),
                "clean": found.correct[:, 0].numpy(),
                "robust": (found.correct[:, place + 1] if alone else found.robust).numpy(),
            },
        )


def keep_pictures(
    run: Run, found: Robustness, entry: Entry, ball: Ball, images: Images, checkpoint: str
) -> None:
    """The first images under the attack of `entry`, the last one, for the page."""
    assert found.examples is not None
    run.write_pictures(
        {name: tensor.numpy() for name, tensor in vars(found.examples).items()}
        | {
            "classes": np.array(images.classes),
            "attack": np.array(entry["attack"]),
            "norm": np.array(ball.norm),
            "eps": np.array(ball.eps),
            "checkpoint": np.array(checkpoint),
        }
    )


def _file_name(entry: Entry) -> str:
    """Other weights of the same checkpoint, and other images, have files of their own: what was
    found of earlier ones keeps its files.
    """
    of = f"update {entry['update']} {entry['fingerprint'][:16]}"
    return f"{protocol(entry)} {of}".replace(" ", "_").replace("/", "over")
