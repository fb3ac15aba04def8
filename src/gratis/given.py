"""A model that was trained elsewhere, put into a run directory so that it can be evaluated."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gratis.recipe import Recipe, from_plain
from gratis.run import Run
from gratis.setting import load_split, network

NESTED = ("state_dict", "model_state_dict", "model", "net", "ema", "params")
"""Keys under which training scripts put the weights, in the order in which they are tried."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put before each name: DataParallel and DDP, torch.compile, RobustBench."""


def adopt(values: dict[str, Any], model: str, weights: Path | None, out: Path) -> Run:
    """A run directory `out` that holds the model as checkpoint `last`, untrained by us.

    values: a recipe, for data and threat.  model: `module:function`, called as a recipe's model
    is; it returns a network from pixels in [0, 1] to logits, normalisation inside.
    weights: a file with its state dict, plain or nested as training scripts and RobustBench leave
    them; without one the function loads them itself.
    Raises ValueError where the model cannot be built or the weights do not fit.
    """
    recipe = from_plain(
        {**values, "name": model, "model": {"name": model}, "method": _none(values["method"])}
    )
    images = load_split(recipe.data, "test")
    net = network(recipe, images)
    if weights is not None:
        load_weights(net, weights)
    _look(net, images.pixels(slice(0, 2)), len(images.classes), model)
    with Run.writing(out, recipe.plain(), resume=False) as run:
        run.save_checkpoint("last", _checkpoint(net, recipe, weights))
    return run


def _none(method: dict[str, Any]) -> dict[str, Any]:
    """Natural training stands where the recipe needs a method; the ball is kept for the threat."""
    return {"name": "natural", **({"ball": method["ball"]} if "ball" in method else {})}


def load_weights(net: nn.Module, path: Path) -> None:
    """Fill `net` from a state dict in `path`; ValueError names what is missing or too much."""
    found = _state_dict(_read(path), path)
    wanted = net.state_dict().keys()
    for prefix in PREFIXES:
        if found and all(key.startswith(prefix) for key in found) and found.keys() != wanted:
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    missing, extra = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    if missing or extra:
        raise ValueError(
            f"{path} does not fit the model: it lacks {_some(missing)} and has {_some(extra)} too "
            "many; write a module:function that builds the network the file was saved from"
        )
    try:
        net.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"no file {path} with weights")
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ValueError(f"{path} needs safetensors: pip install safetensors") from error
        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of a file that is none of its own
        raise ValueError(
            f"{path} could not be read as tensors alone (a pickle may run any code, so nothing "
            f"else is loaded): {error}"
        ) from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The names and tensors, wherever in the file they are."""
    for _ in range(2):  # {"model": {"state_dict": ...}} is as deep as such files go
        if isinstance(content, dict) and content:
            if all(isinstance(value, Tensor) for value in content.values()):
                return content
            inner = [content[key] for key in NESTED if isinstance(content.get(key), dict)]
            content = inner[0] if inner else content
    keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise ValueError(f"{path} holds no state dict (found: {keys or 'nothing'})")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown or "nothing"


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
