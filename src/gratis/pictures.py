"""What a network sees, for the page: its loss around images, images attacked at a large radius,
and which images fall first. Computed once for a checkpoint and kept in the run's views.npz.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gratis.assess import Progress, nowhere, split_for, trained
from gratis.balls import Ball, Linf
from gratis.budget import Meter
from gratis.data import Images
from gratis.evaluate.falls import Falls, falls
from gratis.evaluate.landscape import iterated_fgsm, surfaces
from gratis.recipe import Recipe, from_plain
from gratis.run import Record, Run
from gratis.setting import pick_device
from gratis.training_data import load_split
from gratis.unfinished import fingerprint

Arrays = dict[str, npt.NDArray[Any]]

SCHEMA = 1
LARGE_SHOWN, SURFACE_IMAGES, FALLS_SHOWN = 8, 16, 8
ATTACK = "pgd-10"
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0, 3 / 2, 2.0)
"""Of the run's own eps: the radii at which the images that stand so far are attacked."""

SEED = 0
"""One for all runs: the random directions must be the same where surfaces are compared."""


@dataclass(frozen=True, eq=False)
class Sitter:
    """A run, the first of its test images, and what they are."""

    run: Run
    recipe: Recipe
    images: Images
    data: Record


def sitters(runs: Sequence[Run], limit: int) -> list[Sitter]:
    """The runs with the first `limit` test images each; ValueError unless these are the same."""
    found = []
    for run in runs:
        recipe = from_plain(run.recipe)
        images = load_split(recipe.data, "test")
        data = {"name": images.name, "split": images.split, "fingerprint": images.fingerprint}
        first = images.select(torch.arange(min(limit, len(images))))
        found.append(Sitter(run, recipe, first, data))
    for other in found[1:]:
        if other.data != found[0].data or other.images.classes != found[0].images.classes:
            raise ValueError(
                f"{found[0].run.path} is of {_said(found[0])}, {other.run.path} of {_said(other)}; "
                "side by side the pictures must be of the same test images: draw the runs apart"
            )
    return found


def keep(sitter: Sitter, eps: float, progress: Progress = nowhere) -> bool:
    """Write views.npz of a run unless it holds the same already; whether there was anything to do.

    eps: the large Linf radius of the attacked images, and one of the two of the surfaces. The
    other, and what the images that fall are measured by, is the run's own.
    """
    Linf(eps)  # refuses what is no radius
    recipe = sitter.recipe
    state = sitter.run.whole_checkpoint(recipe.evaluation.checkpoint)
    images = split_for(recipe, state, sitter.images)
    model = trained(recipe, images, state).to(pick_device(recipe.engine.device)).eval()
    ball = recipe.evaluation_balls()[0]
    about = _about(sitter, ball, eps) | {"update": state["updates"], "weights": fingerprint(model)}
    kept = sitter.run.views().get("about")
    if kept is not None and json.loads(str(kept)) == about:
        return False
    images = images.to(next(model.parameters()).device)
    x, y = images.pixels(slice(SURFACE_IMAGES)), images.y[:SURFACE_IMAGES]
    radii = {eps, ball.eps} if isinstance(ball, Linf) else {eps}
    size = recipe.evaluation.batch_size or recipe.data.batch_size
    kinds = {
        "surface": surface_arrays(model, x, y, sorted(radii), seed=SEED),
        "large": _large(model, x[:LARGE_SHOWN], y[:LARGE_SHOWN], eps, images),
        "falls": _falls(model, images, ball, about["radii"], size, progress),
    }
    arrays = {f"{kind} {name}": a for kind, found in kinds.items() for name, a in found.items()}
    named = {"about": np.array(json.dumps(about)), "classes": np.array(images.classes)}
    sitter.run.write_views(named | arrays)
    return True


def _about(sitter: Sitter, ball: Ball, eps: float) -> Record:
    """Everything but the weights that the views are a function of."""
    return {
        "schema": SCHEMA,
        "checkpoint": sitter.recipe.evaluation.checkpoint,
        "data": sitter.data,
        "count": len(sitter.images),
        "surface_images": min(SURFACE_IMAGES, len(sitter.images)),
        "large_eps": eps,
        "threat": {"norm": ball.norm, "eps": ball.eps},
        "attack": ATTACK,
        "radii": sorted({ball.of(share * ball.eps).eps for share in SHARES}),
        "seed": SEED,
    }


def surface_arrays(
    model: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float], *, seed: int
) -> Arrays:
    """The loss surfaces around x at each radius, by "adversarial 0.1" and "random 0.1"."""
    return {
        f"{name} {radius!r}": surface.losses.numpy()
        for radius in radii
        for name, surface in surfaces(model, x, y, radius=radius, seed=seed).items()
    }


def _large(model: nn.Module, x: Tensor, y: Tensor, eps: float, images: Images) -> Arrays:
    """Images moved by up to eps away from their label, and towards the next class."""
    target = (y + 1) % len(images.classes)
    points = {
        "clean": x,
        "untargeted": iterated_fgsm(model, x, y, eps=eps),
        "targeted": iterated_fgsm(model, x, y, eps=eps, towards=target),
    }
    arrays = {"label": y.cpu().numpy(), "target": target.cpu().numpy()}
    with torch.no_grad():
        for name, point in points.items():
            arrays[name] = point.cpu().numpy()
            arrays[f"{name} prediction"] = model(point).argmax(1).cpu().numpy()
    return arrays


def _falls(
    model: nn.Module,
    images: Images,
    ball: Ball,
    radii: Sequence[float],
    size: int,
    progress: Progress,
) -> Arrays:
    """For each image where it falls and how sure the network was; pictures of the extremes."""
    note, meter = f"{ATTACK} at {len(radii)} radii", Meter()
    parts: list[Falls] = []
    progress("pictures", 0, len(images), note)
    for start in range(0, len(images), size):
        chosen = slice(start, start + size)
        x, y = images.pixels(chosen), images.y[chosen]
        part = falls(model, x, y, ball=ball, radii=radii, attack=ATTACK, seed=SEED, meter=meter)
        parts.append(part)
        progress("pictures", min(start + size, len(images)), len(images), note)
    names = ("eps", "before", "after", "prediction", "points")
    arrays: Arrays = {
        name: torch.cat([getattr(part, name) for part in parts]).numpy() for name in names
    }
    points = arrays.pop("points")
    arrays["label"] = images.y.cpu().numpy()
    arrays["cost"] = np.array([meter.forwards + meter.probes, meter.probes])
    shown = torch.from_numpy(_extremes(arrays["eps"], arrays["after"]))
    arrays["shown"] = shown.numpy()
    arrays["clean"] = images.pixels(shown.to(images.x.device)).cpu().numpy()
    arrays["adversarial"] = points[shown.numpy()]
    return arrays


def _extremes(eps: npt.NDArray[Any], after: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The images that fall first, then those that stand longest, none of them twice.

    Of images that fall at the same radius, the one left with less of the label comes first.
    Images that are wrong as they are do not fall.
    """
    order = np.lexsort((after, eps))
    order = order[eps[order] > 0]
    shown = min(FALLS_SHOWN, len(order) // 2)
    return np.concatenate([order[:shown], order[len(order) - shown :]])


def _said(sitter: Sitter) -> str:
    data = sitter.data
    return f"{data['name']} ({data['split']}, fingerprint {data['fingerprint'][:8]})"
