"""A model that was trained elsewhere, put into a run directory so that it can be evaluated."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gratis.recipe import Recipe, from_plain
from gratis.run import Run
from gratis.setting import network
from gratis.training_data import load_split
from gratis.weights import load_weights


def adopt(values: dict[str, Any], model: str, weights: Path | None, out: Path) -> Run:
    """A run directory `out` that holds the model as checkpoint `last`, untrained by us.

    values: a recipe, for data and threat; its `model` for what the function is given besides
    (options) and for a normalisation before its network (mean, std).
    model: `module:function`, called as a recipe's model is; it returns a network from pixels in
    [0, 1] to logits, normalisation inside unless it is asked for here.
    weights: a file with its state dict, plain or nested as training scripts and RobustBench leave
    them; without one the function loads them itself.
    Raises ValueError where the model cannot be built or the weights do not fit.
    """
    recipe = from_plain(
        {
            **values,
            "name": model,
            "model": {**(values.get("model") or {}), "name": model},
            "method": _none(values.get("method")),
            "evaluation": {**(values.get("evaluation") or {}), "checkpoint": "last"},
        }
    )
    images = load_split(recipe.data, "test")
    net = network(recipe, images)
    if weights is not None:
        load_weights(net, weights)
    _look(net, images.pixels(slice(0, 2)), len(images.classes), model)
    with Run.writing(out, recipe.plain(), resume=False) as run:
        run.save_checkpoint("last", _checkpoint(net, recipe, weights))
    return run


def _none(method: Any) -> dict[str, Any]:
    """Natural training stands where the recipe needs a method; the ball is kept for the threat."""
    kept = {"ball": method["ball"]} if isinstance(method, dict) and "ball" in method else {}
    return {"name": "natural", **kept}


def _look(net: nn.Module, x: Tensor, classes: int, name: str) -> None:
    """One answer of the model; ValueError unless it is a row of logits for each class."""
    net.eval()
    try:
        with torch.no_grad():
            logits = net(x)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} fails on images {list(x.shape)}: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (len(x), classes):
        what = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{name} answers images {list(x.shape)} with {what}; logits "
            f"{[len(x), classes]} are needed, one for each class of the data"
        )


def _checkpoint(net: nn.Module, recipe: Recipe, weights: Path | None) -> dict[str, Any]:
    none = dict.fromkeys(
        (
            *("predicted_passes", "metered_passes", "papers_passes", "guard_passes"),
            *("updates", "data_passes", "seconds"),
        ),
        0,
    )
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None
    return {
        "model": net.state_dict(),
        "averaged": None,
        "updates": 0,
        "budget": none,
        "given": {
            "model": recipe.model.name,
            "weights": weights.name if weights else None,
            "weights_sha256": digest,
        },
    }
