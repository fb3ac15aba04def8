"""What some figures need of a trained row besides its accuracies; numbers for columns
extra:KEY, arrays into the row's directory.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gratis.assess import split_for, trained
from gratis.balls import Linf
from gratis.data import Images
from gratis.evaluate.branches import pass_accuracies
from gratis.evaluate.landscape import iterated_fgsm
from gratis.pictures import surface_arrays
from gratis.recipe import Recipe
from gratis.reproduce.papers import Extra, Scale
from gratis.run import Run
from gratis.setting import build_loaders, pick_device
from gratis.training_data import AnyImages, training_data
from gratis.verify import Settings, verify_run

PICTURES, SURFACES = "bim.npz", "surfaces.npz"

BIM_EPS, BIM_IMAGES, BIM_SHOWN = 30 / 255, 100, 8
SURFACE_RADII, SURFACE_IMAGES = (8 / 255, 30 / 255), 16
LEAK_BATCHES = 8
VERIFIED_EPS = 0.1


def pictures(run: Run, recipe: Recipe, scale: Scale) -> dict[str, float]:
    """BIM at 30/255: the first images for the page, and the share of 100 still answered rightly."""
    images, model = _tested(run, recipe, BIM_IMAGES)
    x, y = images.pixels(slice(None)), images.y
    adversarial = iterated_fgsm(model, x, y, eps=BIM_EPS)
    with torch.no_grad():
        before, after = model(x).argmax(1), model(adversarial).argmax(1)
    shown = slice(BIM_SHOWN)
    _keep(
        run.path / PICTURES,
        clean=x[shown].cpu().numpy(),
        adversarial=adversarial[shown].cpu().numpy(),
        label=y[shown].cpu().numpy(),
        clean_prediction=before[shown].cpu().numpy(),
        adversarial_prediction=after[shown].cpu().numpy(),
        classes=np.array(images.classes),
    )
    right = (after == y) & (before == y)
    return {"bim_right": float(right.double().mean()), "bim_images": float(len(x))}


def landscape(run: Run, recipe: Recipe, scale: Scale) -> dict[str, float]:
    """Loss surfaces, and how far the loss rises from the images to 8/255 in each direction."""
    images, model = _tested(run, recipe, SURFACE_IMAGES)
    x, y = images.pixels(slice(None)), images.y
    arrays = surface_arrays(model, x, y, SURFACE_RADII, seed=recipe.seed)
    _keep(run.path / SURFACES, **arrays)
    near = arrays[f"adversarial {SURFACE_RADII[0]!r}"]
    centre = len(near) // 2
    return {
        "adversarial_rise": float(near[-1, centre] - near[centre, centre]),
        "random_rise": float(near[centre, [0, -1]].mean() - near[centre, centre]),
    }


def accuracies(run: Run, recipe: Recipe, scale: Scale) -> dict[str, float]:
    """The share of training inputs answered rightly in each pass, in train mode."""
    # a short batch would not fill the norm groups alike
    recipe = replace(recipe, data=replace(recipe.data, drop_last=True))
    data = training_data(recipe)
    model = _network(run, recipe, data.training)
    loader = build_loaders(recipe, data, pick_device(recipe.engine.device))[0]
    found = pass_accuracies(
        model, recipe.build_method(), islice(loader.epoch(0), LEAK_BATCHES), seed=recipe.seed
    )
    return dict(zip(("pass_clean", "pass_noisy", "pass_adversarial"), found, strict=True))


def verified(run: Run, recipe: Recipe, scale: Scale) -> dict[str, float]:
    """The share of the test images evaluated that is proved safe at 0.1, and of undecided ones."""
    with run.locked():
        found = verify_run(
            run,
            Linf(VERIFIED_EPS),
            Settings(time_limit=1.0 if scale == "smoke" else 60.0, seed=recipe.seed),
            limit=recipe.evaluation.limit,
            checkpoint=recipe.evaluation.checkpoint,
        )["verified"]
    low, high = found["low"]["accuracy"], found["high"]["accuracy"]
    return {"verified": low, "undecided": high - low}


EXTRAS: dict[Extra, Callable[[Run, Recipe, Scale], dict[str, float]]] = {
    "none": lambda run, recipe, scale: {},
    "pictures": pictures,
    "landscape": landscape,
    "pass-accuracies": accuracies,
    "verified": verified,
}


def _tested(run: Run, recipe: Recipe, count: int) -> tuple[Images, nn.Module]:
    """The first test images, no more than were evaluated, and the network in eval mode."""
    state = run.whole_checkpoint(recipe.evaluation.checkpoint)
    images = split_for(recipe, state)
    count = min(count, len(images), recipe.evaluation.limit or count)
    images = images.select(torch.arange(count))
    model = _network(run, recipe, images).eval()
    return images.to(pick_device(recipe.engine.device)), model


def _network(run: Run, recipe: Recipe, images: AnyImages) -> nn.Module:
    state = run.whole_checkpoint(recipe.evaluation.checkpoint)
    return trained(recipe, images, state).to(pick_device(recipe.engine.device))


def _keep(path: Path, **arrays: npt.NDArray[np.generic]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
